"""The reference: the full model tuned on pooled text, whatever the federation averages by."""

import json
from pathlib import Path

import pytest
import torch

from fl_server.compress import load_full_model
from fl_server.data import read_data
from fl_server.reference import full_fine_tuned
from scaleot_core.evaluation import evaluate
from scaleot_core.progress import SilentReporter
from tests.support.tiny_task import tiny_run, write_task


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("task"))


def logits_of(task: Path, aggregation: str) -> torch.Tensor:
    run = tiny_run(task, f"federation.aggregation={aggregation}")
    full = load_full_model(run.model, SilentReporter())
    tokens = torch.arange(3, 20)[None]
    before = full.model(tokens).logits
    with full_fine_tuned(run, full, read_data(run, SilentReporter()), SilentReporter()) as tuned:
        logits = tuned.model(tokens).logits
    assert torch.equal(full.model(tokens).logits, before), "the model comes back as it was"
    assert not torch.equal(logits, before)
    return logits


def test_the_reference_is_the_same_under_every_rule_of_aggregation(task: Path) -> None:
    """FFA-LoRA freezes A so that averages are exact; of the reference there is nothing to average."""
    assert torch.equal(logits_of(task, "ffa"), logits_of(task, "fedavg"))


def test_of_checkpoints_the_reference_is_the_one_with_the_least_validation_loss(task: Path) -> None:
    """Records with the other answer, round by round less likely; without validation records the last round counts."""
    other = task / "other_answers.jsonl"
    rows = [json.loads(line) for line in (task / "test.jsonl").read_text().splitlines()]
    other.write_text("".join(json.dumps({**row, "label": 1 - row["label"]}) + "\n" for row in rows))
    rate = "evaluation.full_fine_tuning_learning_rate=3e-2"
    settings = (rate, "federation.local_steps=20", f"data.test={other}")
    losses = [validation_loss(task, *settings, f"federation.rounds={rounds}") for rounds in range(1, 4)]
    assert losses[0] + 0.1 < min(losses[1:]), "the setting must make an earlier checkpoint the best"
    assert validation_loss(task, *settings, "federation.rounds=3") == losses[-1]
    best = validation_loss(task, *settings, "federation.rounds=3", f"data.validation={other}")
    assert best == min(losses)


def validation_loss(task: Path, *settings: str) -> float:
    run = tiny_run(task, *settings)
    full = load_full_model(run.model, SilentReporter())
    data = read_data(run, SilentReporter())
    with full_fine_tuned(run, full, data, SilentReporter()) as tuned:
        return evaluate(tuned.model, tuned.tokenizer, data.test, reporter=SilentReporter()).loss
