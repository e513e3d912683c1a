import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from scaleot_core.assets.arrow_records import write_boolq_passages, write_sst2_records
from scaleot_core.errors import AssetError


def write_arrow(path: Path, columns: dict[str, list[Any]]) -> Path:
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_sst2_is_split_in_300_test_records_and_the_rest_whatever_the_order_of_the_file(tmp_path: Path) -> None:
    sentences = [f"sentence {i} " for i in range(400)]
    splits = []
    for order in (1, -1):
        arrow = write_arrow(tmp_path / "sst2.arrow", {"sentence": sentences[::order], "label": [0, 1][::order] * 200})
        write_sst2_records(arrow, tmp_path / "train.jsonl", tmp_path / "test.jsonl")
        splits.append((read_lines(tmp_path / "train.jsonl"), read_lines(tmp_path / "test.jsonl")))
    assert splits[0] == splits[1]
    train, test = splits[0]
    assert (len(train), len(test)) == (100, 300)
    assert {record["context"] for record in train}.isdisjoint(record["context"] for record in test)


def test_an_sst2_record_is_the_zero_shot_prompt_both_answers_and_the_label(tmp_path: Path) -> None:
    arrow = write_arrow(tmp_path / "sst2.arrow", {"sentence": ["a charming journey . "], "label": [1]})
    write_sst2_records(arrow, tmp_path / "train.jsonl", tmp_path / "test.jsonl")
    assert read_lines(tmp_path / "test.jsonl") == [
        {
            "context": "a charming journey .\nQuestion: Is this sentence positive or negative?\nAnswer:",
            "choices": ["negative", "positive"],
            "label": 1,
        }
    ]


def test_a_passage_of_boolq_appears_once(tmp_path: Path) -> None:
    arrow = write_arrow(tmp_path / "boolq.arrow", {"question": ["a", "b", "c"], "passage": ["é one", "two", "é one "]})
    write_boolq_passages(arrow, tmp_path / "passages.jsonl")
    assert (tmp_path / "passages.jsonl").read_text(encoding="utf-8") == '{"text": "é one"}\n{"text": "two"}\n'


def test_a_file_that_is_no_arrow_stream_or_lacks_a_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.arrow").write_text("no arrow")
    with pytest.raises(AssetError, match=r"text\.arrow is no Arrow stream with passage"):
        write_boolq_passages(tmp_path / "text.arrow", tmp_path / "passages.jsonl")
    with pytest.raises(AssetError, match="is no Arrow stream with passage"):
        write_boolq_passages(write_arrow(tmp_path / "o.arrow", {"other": ["x"]}), tmp_path / "passages.jsonl")
