import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from scaleot_core.assets.arrow_records import (
    ENTAILMENT,
    PASSAGE,
    QUESTION,
    SOLUTION,
    STEM,
    ChoiceShape,
    Row,
    write_boolq_passages,
    write_choice_records,
    write_sst2_records,
)
from scaleot_core.errors import AssetError

DIGIT_KEYED = {"text": ["ice", "steam", "fog"], "label": ["1", "2", "3"]}
LETTER_KEYED = {"text": ["run", "swim"], "label": ["A", "B"]}
CHOICE_CASES = {
    "rte": (
        ENTAILMENT,
        {"sentence1": "Cats purr. ", "sentence2": "Dogs purr.", "label": 1, "idx": 7},
        {
            "context": "Cats purr. \nQuestion: Dogs purr. True or False?\nAnswer:",
            "choices": ["True", "False"],
            "label": 1,
        },
    ),
    "piqa": (
        SOLUTION,
        {"goal": "open a jar", "sol1": "twist ", "sol2": "shout", "label": 0},
        {"context": "Question: open a jar\nAnswer:", "choices": ["twist ", "shout"], "label": 0},
    ),
    "arc": (
        QUESTION,
        {"id": "q7", "question": "What is hot?", "choices": DIGIT_KEYED, "answerKey": "2"},
        {"context": "Question: What is hot?\nAnswer:", "choices": ["ice", "steam", "fog"], "label": 1},
    ),
    "openbookqa": (
        STEM,
        {"id": "q8", "question_stem": "Fish can", "choices": LETTER_KEYED, "answerKey": "B"},
        {"context": "Fish can", "choices": ["run", "swim"], "label": 1},
    ),
    "sciq": (
        PASSAGE,
        {
            "question": "Who?",
            "distractor3": "c",
            "distractor1": "a",
            "distractor2": "b",
            "correct_answer": "d",
            "support": " A passage. ",
        },
        {"context": "A passage. \nQuestion: Who?\nAnswer:", "choices": ["a", "b", "c", "d"], "label": 3},
    ),
}


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


@pytest.mark.parametrize(("shape", "row", "record"), CHOICE_CASES.values(), ids=CHOICE_CASES)
def test_a_choice_record_is_the_zero_shot_prompt_all_choices_and_the_index_of_the_right_one(
    tmp_path: Path, shape: ChoiceShape, row: Row, record: Row
) -> None:
    arrow = write_arrow(tmp_path / "task.arrow", {name: [value] for name, value in row.items()})
    write_choice_records(arrow, shape, tmp_path / "task.jsonl")
    assert read_lines(tmp_path / "task.jsonl") == [record]


def test_every_row_becomes_a_choice_record_in_the_order_of_the_file(tmp_path: Path) -> None:
    columns = {"goal": ["z", "a", "z"], "sol1": ["é"] * 3, "sol2": ["f"] * 3, "label": [1, 0, 1]}
    write_choice_records(write_arrow(tmp_path / "task.arrow", columns), SOLUTION, tmp_path / "task.jsonl")
    records = read_lines(tmp_path / "task.jsonl")
    assert [(record["context"], record["label"]) for record in records] == [
        ("Question: z\nAnswer:", 1),
        ("Question: a\nAnswer:", 0),
        ("Question: z\nAnswer:", 1),
    ]


def test_a_row_whose_key_names_no_choice_is_refused(tmp_path: Path) -> None:
    columns = {"question_stem": ["Fish can"], "choices": [LETTER_KEYED], "answerKey": ["C"]}
    with pytest.raises(AssetError, match=r"task\.arrow has a row whose key names no choice: 'C'"):
        write_choice_records(write_arrow(tmp_path / "task.arrow", columns), STEM, tmp_path / "task.jsonl")


def test_a_passage_of_boolq_appears_once(tmp_path: Path) -> None:
    arrow = write_arrow(tmp_path / "boolq.arrow", {"question": ["a", "b", "c"], "passage": ["é one", "two", "é one "]})
    write_boolq_passages(arrow, tmp_path / "passages.jsonl")
    assert (tmp_path / "passages.jsonl").read_text(encoding="utf-8") == '{"text": "é one"}\n{"text": "two"}\n'


def test_a_file_that_is_no_arrow_stream_or_lacks_a_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.arrow").write_text("no arrow")
    with pytest.raises(AssetError, match=r"text\.arrow is no Arrow stream with passage"):
        write_boolq_passages(tmp_path / "text.arrow", tmp_path / "passages.jsonl")
    with pytest.raises(AssetError, match="is no Arrow stream with goal, sol1, sol2, label"):
        write_choice_records(write_arrow(tmp_path / "o.arrow", {"goal": ["x"]}), SOLUTION, tmp_path / "o.jsonl")
    with pytest.raises(AssetError, match="is no Arrow stream with passage"):
        write_boolq_passages(write_arrow(tmp_path / "o.arrow", {"other": ["x"]}), tmp_path / "passages.jsonl")
