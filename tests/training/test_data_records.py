import gzip
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleot_core.errors import DataError
from scaleot_core.training.data import (
    AnswerRecord,
    ChatRecord,
    ChoiceRecord,
    CompletionRecord,
    Message,
    TextRecord,
    read_records,
)

CHOICE = {"context": "Is it good?", "choices": ["no", "yes"], "label": 1}
CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}

KINDS = [
    ({"text": ""}, TextRecord("")),
    ({"context": "a", "target": "b"}, CompletionRecord("a", "b")),
    (CHOICE, ChoiceRecord("Is it good?", ("no", "yes"), 1)),
    ({"context": "who?", "answers": ["me", "I"]}, AnswerRecord("who?", ("me", "I"))),
    (CHAT, ChatRecord((Message("user", "hi"), Message("assistant", "hello")))),
]


def write_lines(path: Path, *documents: object) -> Path:
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_records(path)
    return str(caught.value)


@pytest.mark.parametrize(("document", "record"), KINDS)
def test_every_kind_of_record_is_read(tmp_path: Path, document: object, record: object) -> None:
    assert read_records(write_lines(tmp_path / "data.jsonl", document, document)) == (record, record)


@pytest.mark.parametrize(("document", "record"), KINDS)
def test_fields_a_kind_does_not_have_are_ignored(tmp_path: Path, document: dict[str, object], record: object) -> None:
    extended = {"id": 7, "kshot": [1, {"a": None}], **document}
    assert read_records(write_lines(tmp_path / "data.jsonl", extended)) == (record,)


def test_a_line_with_the_fields_of_several_kinds_is_of_the_most_specific(tmp_path: Path) -> None:
    document = {"text": "t", "target": "b", "answers": "no list", **CHOICE}
    assert read_records(write_lines(tmp_path / "data.jsonl", document)) == (KINDS[2][1],)


def test_the_last_line_needs_no_newline(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "a"}\r\n{"text": "\xc3\xa9"}')
    assert read_records(path) == (TextRecord("a"), TextRecord("é"))


@pytest.mark.parametrize("name", ["data.jsonl.gz", "data.jsonl"])
def test_gzip_is_known_by_its_first_bytes_not_by_the_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b'{"text": "a"}\n') + gzip.compress(b'{"text": "b"}\n'))
    assert read_records(path) == (TextRecord("a"), TextRecord("b"))


MALFORMED = {
    "no JSON": b"{'text': 'a'}",
    "empty line": b"",
    "cut off": b'{"text": "a',
    "two objects": b'{"text": "a"} {"text": "b"}',
    "not an object": b'["text"]',
    "no UTF-8": b'{"text": "\xff"}',
    "byte order mark": b'\xef\xbb\xbf{"text": "a"}',
    "half a surrogate pair": b'{"text": "\\ud800"}',
    "nested too deeply": b'{"text": ' + b"[" * 200_000,
    "a number too long": b'{"text": ' + b"1" * 5000 + b"}",
    "unknown fields": b'{"sentence": "a"}',
    "no label": b'{"context": "a", "choices": ["b", "c"]}',
    "text is a number": b'{"text": 3}',
    "context is null": b'{"context": null, "target": "b"}',
    "empty target": b'{"context": "a", "target": " "}',
    "no choices": b'{"context": "a", "choices": [], "label": 0}',
    "one choice": b'{"context": "a", "choices": ["b"], "label": 0}',
    "empty choice": b'{"context": "a", "choices": ["b", ""], "label": 0}',
    "choices is a string": b'{"context": "a", "choices": "bc", "label": 0}',
    "label beyond the choices": b'{"context": "a", "choices": ["b", "c"], "label": 2}',
    "label below zero": b'{"context": "a", "choices": ["b", "c"], "label": -1}',
    "label is a boolean": b'{"context": "a", "choices": ["b", "c"], "label": true}',
    "label is a fraction": b'{"context": "a", "choices": ["b", "c"], "label": 1.0}',
    "no answers": b'{"context": "a", "answers": []}',
    "answer is a number": b'{"context": "a", "answers": ["b", 2]}',
    "no messages": b'{"messages": []}',
    "no assistant": b'{"messages": [{"role": "user", "content": "a"}]}',
    "unknown role": b'{"messages": [{"role": "robot", "content": "a"}]}',
    "message without content": b'{"messages": [{"role": "assistant"}]}',
    "empty assistant": b'{"messages": [{"role": "assistant", "content": ""}]}',
}


@pytest.mark.parametrize("line", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_line_is_refused_with_file_and_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    assert f"{path}, line 2: " in refusal(path)
    path.write_bytes(line + b"\n")
    assert f"{path}, line 1: " in refusal(path)


@pytest.mark.parametrize("other", [document for document, _ in KINDS[1:]])
def test_two_kinds_in_one_file_are_refused(tmp_path: Path, other: object) -> None:
    path = write_lines(tmp_path / "data.jsonl", {"text": "a"}, {"text": "b"}, other)
    assert f"{path}, line 3: expected a TextRecord" in refusal(path)


def test_a_refusal_never_quotes_the_text(tmp_path: Path) -> None:
    private = "patient 4711"
    for line in ({private: private}, {"text": [private]}, {"context": private, "choices": [private, ""], "label": 9}):
        assert private not in refusal(write_lines(tmp_path / "data.jsonl", line))
    (tmp_path / "data.jsonl").write_text(f'{{"text": "{private}')
    assert private not in refusal(tmp_path / "data.jsonl")


@pytest.mark.parametrize("content", [b"", gzip.compress(b"", mtime=0)], ids=["plain", "gzip"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    assert f"{path} is empty" in refusal(path)


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    assert f"{tmp_path / 'absent'} cannot be read: No such file" in refusal(tmp_path / "absent")
    assert f"{tmp_path} cannot be read: Is a directory" in refusal(tmp_path)


@pytest.mark.parametrize("kept_share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_gzip_data_are_refused(tmp_path: Path, kept_share: float) -> None:
    packed = gzip.compress(b"".join(b'{"text": "%d"}\n' % (index**3) for index in range(1000)))
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(packed[: int(len(packed) * kept_share)])
    message = refusal(path)
    assert str(path) in message and "line" in message


@pytest.mark.parametrize("position", [40, -6])
def test_altered_gzip_data_are_refused(tmp_path: Path, position: int) -> None:
    packed = bytearray(gzip.compress(b"".join(b'{"text": "%d"}\n' % (index**3) for index in range(1000))))
    packed[position] ^= 0x55
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(packed)
    assert str(path) in refusal(path)


@given(content=st.binary(max_size=200) | st.text(max_size=50).map(lambda text: b'{"text":' + text.encode() + b"}"))
def test_whatever_the_bytes_only_a_data_error_is_raised(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content)
    try:
        records = read_records(path)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert all(isinstance(record, TextRecord) for record in records)


def test_reading_holds_the_records_and_not_the_file(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl.gz"
    line = json.dumps({"text": "short", "raw": "x" * 20_000}).encode() + b"\n"
    path.write_bytes(gzip.compress(line * 500))
    tracemalloc.start()
    try:
        assert len(read_records(path)) == 500
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < len(line) * 500 / 10
