"""Zero-shot choices agree with lm-evaluation-harness: its own tasks, prompts, log-likelihoods and hits.

The harness runs its own pipeline over its own task definitions. Only the rows come from the shared task data, put back
into the fields of the published data sets, because a task downloads them otherwise.
"""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from scaleot_core.assets import asset_path
from scaleot_core.evaluation import evaluate
from scaleot_core.models.loading import load_model
from scaleot_core.progress import SilentReporter
from scaleot_core.scoring import BATCH_TOKENS, score_examples
from scaleot_core.training.encoding import continuation, encode_pairs
from scaleot_core.training.records import ChoiceRecord, read_records
from tests.support.tiny_models import tiny_model
from tests.support.tiny_tokenizer import tiny_tokenizer

TASK_DATA = Path(__file__).parents[2] / "shared" / "tasks"
WINDOW_TOKENS = 2048
Row = dict[str, Any]

pytestmark = pytest.mark.skipif(not TASK_DATA.is_dir(), reason=f"needs the shared task data in {TASK_DATA}")


def arc_row(row: Row) -> Row:
    labels = list("ABCDE")[: len(row["choices"])]
    choices = {"text": row["choices"], "label": labels}
    return {"question": row["question"], "choices": choices, "answerKey": labels[row["label"]]}


def openbookqa_row(row: Row) -> Row:
    published = arc_row(row)
    return {"question_stem": published.pop("question"), **published}


def piqa_row(row: Row) -> Row:
    return {"goal": row["question"], "sol1": row["choices"][0], "sol2": row["choices"][1], "label": row["label"]}


def sciq_row(row: Row) -> Row:
    names = ("distractor1", "distractor2", "distractor3", "correct_answer")
    choices = dict(zip(names, row["choices"], strict=True))
    return {"question": row["question"], "support": row["support"], **choices}


PUBLISHED_ROW: dict[str, Callable[[Row], Row]] = {
    "arc_easy": arc_row,
    "arc_challenge": arc_row,
    "openbookqa": openbookqa_row,
    "piqa": piqa_row,
    "sciq": sciq_row,
}


@dataclass(frozen=True)
class Outcome:
    """What came of a task, example by example."""

    prompts: list[list[tuple[str, str]]]
    likelihoods: list[list[float]]
    hits: list[tuple[float, float]]
    """Of ``acc`` and of ``acc_norm``."""
    means: tuple[float, float]


def harness_outcome(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, task: str, count: int) -> Outcome:
    """The harness from end to end: its task, its requests, its model wrapper, its metrics."""
    import datasets
    import lm_eval.tasks
    from lm_eval.evaluator import evaluate as evaluate_with_harness
    from lm_eval.models.huggingface import HFLM

    with gzip.open(TASK_DATA / task / "validation.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [PUBLISHED_ROW[task](json.loads(line)) for line, _ in zip(lines, range(count), strict=False)]
    data = {"validation": datasets.Dataset.from_list(rows)}
    folder = Path(lm_eval.tasks.__file__).parent / task.removesuffix("_easy").removesuffix("_challenge")
    manager = lm_eval.tasks.TaskManager(include_path=folder, include_defaults=False)
    local = {"custom_dataset": lambda **_: data, "training_split": None, "test_split": None}
    wrapper = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
    results = evaluate_with_harness(
        wrapper, manager.load({"group": "local", "task": [{"task": task, **local}]}), bootstrap_iters=0
    )
    samples, means = results["samples"][task], results["results"][task]
    return Outcome(
        [[tuple(argument) for argument in sample["arguments"]] for sample in samples],
        [[likelihood for likelihood, _ in sample["filtered_resps"]] for sample in samples],
        [(sample["acc"], sample["acc_norm"]) for sample in samples],
        (means["acc,none"], means["acc_norm,none"]),
    )


def our_outcome(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, task: str, count: int) -> Outcome:
    records = read_records(TASK_DATA / task / "validation.jsonl.gz")[:count]
    assert all(isinstance(record, ChoiceRecord) for record in records)
    prompts = [[continuation(record.context, choice) for choice in record.choices] for record in records]
    examples = encode_pairs([pair for row in prompts for pair in row], tokenizer, max_tokens=WINDOW_TOKENS)
    scores = iter(score_examples(model, examples, batch_tokens=BATCH_TOKENS["cpu"], reporter=SilentReporter()))
    likelihoods = [[next(scores).log_probability for _ in row] for row in prompts]
    alone = [evaluate(model, tokenizer, [record], reporter=SilentReporter()) for record in records]
    together = evaluate(model, tokenizer, records, reporter=SilentReporter())
    hits = [(metrics.accuracy, metrics.accuracy_norm) for metrics in alone]
    return Outcome(prompts, likelihoods, hits, (together.accuracy, together.accuracy_norm))


def assert_agreement(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, task: str, count: int) -> None:
    ours, harness = (outcome(model, tokenizer, task, count) for outcome in (our_outcome, harness_outcome))
    assert len(ours.hits) == count
    assert ours.prompts == harness.prompts
    assert [len(row) for row in ours.likelihoods] == [len(row) for row in harness.likelihoods]
    for our_row, harness_row in zip(ours.likelihoods, harness.likelihoods, strict=True):
        assert our_row == pytest.approx(harness_row, abs=2e-3, rel=0)
    assert ours.hits == harness.hits
    assert ours.means == pytest.approx(harness.means, abs=1e-12)


def tiny_model_with_room() -> PreTrainedModel:
    model = tiny_model("llama", layers=2)
    model.config.max_position_embeddings = WINDOW_TOKENS  # rotary positions come from no table that could end
    return model


def beginning_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer as Llama's is: it puts a begin-of-text token in front of every text."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


@pytest.mark.parametrize("task", PUBLISHED_ROW)
def test_prompts_likelihoods_and_hits_are_the_harness_own(task: str) -> None:
    assert_agreement(tiny_model_with_room(), tiny_tokenizer(), task, count=24)


def test_a_begin_of_text_token_stands_where_the_harness_puts_it() -> None:
    assert_agreement(tiny_model_with_room(), beginning_tokenizer(), "openbookqa", count=24)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("task", PUBLISHED_ROW)
def test_a_real_model_gets_the_harness_points_to_the_example(task: str) -> None:
    loaded = load_model(asset_path("smollm2-135m"), dtype=torch.float32, device=torch.device("cpu"))
    assert_agreement(loaded.model, loaded.tokenizer, task, count=40)
