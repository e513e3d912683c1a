"""A tiny saved model, public text and a classification task in files, and a run file that takes seconds."""

import json
from pathlib import Path

from scaleot_core.config import read_run_file
from scaleot_core.run_file import RunFile
from tests.support.tiny_models import save_tiny_model

QUESTION = "Question: is this sentence positive or negative? Answer:"


def write_task(root: Path) -> Path:
    """Writes ``model``, ``public.txt``, ``train.jsonl`` and ``test.jsonl`` into ``root`` and returns it."""
    save_tiny_model(root / "model")
    text = "the film is good and the story is true. the film is bad and the story is false. " * 60
    (root / "public.txt").write_text(text)
    for name, count in (("train", 40), ("test", 24)):
        rows = [
            {
                "context": f"the film number {i} is {('bad', 'good')[i % 2]}\n{QUESTION}",
                "label": i % 2,
                "choices": ["negative", "positive"],
            }
            for i in range(count)
        ]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def tiny_run(task: Path, *overrides: str, file: Path | None = None) -> RunFile:
    """Returns a run file of the task; ``file``, if given, is read first."""
    settings = {
        "model.source": task / "model",
        "model.dtype": "float32",
        "model.device": "cpu",
        "importance.text": task / "public.txt",
        "importance.steps": 4,
        "importance.harmonizer_rank": 4,
        "importance.block_tokens": 16,
        "importance.score_every_steps": 2,
        "importance.closed_form_blocks": 8,
        "emulator.num_adapter_layers": 2,
        "data.train": task / "train.jsonl",
        "data.test": task / "test.jsonl",
        "federation.rounds": 2,
        "federation.local_steps": 3,
        "federation.clients": 3,
        "evaluation.examples": 20,
        "model_privacy.strong_emulator_steps": 0,
        "model_privacy.healing_steps": [],
    }
    return read_run_file(file, [f"{key}={value}" for key, value in settings.items()] + list(overrides))
