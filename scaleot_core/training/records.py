"""The records of a data file: JSON lines of one kind, plain or gzip-compressed, read strictly.

=============================== ============================================================
fields of a line                kind
=============================== ============================================================
``messages``                    chat: a list of ``{"role", "content"}``
``context, choices, label``     choice: ``label`` is the index of the right one
``context, answers``            answer: a list of accepted answers, the first one is trained on
``context, target``             completion
``text``                        text
=============================== ============================================================

The first row of the table whose fields a line has all of decides its kind; other fields are ignored.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from scaleot_core.errors import DataError

_GZIP_MAGIC = b"\x1f\x8b"
_ROLES = ("system", "user", "assistant")
_MIN_CHOICES = 2


@dataclass(frozen=True, slots=True)
class TextRecord:
    """Plain text; it may be empty."""

    text: str


@dataclass(frozen=True, slots=True)
class CompletionRecord:
    """A context and the text that follows it."""

    context: str
    target: str


@dataclass(frozen=True, slots=True)
class ChoiceRecord:
    """A context, at least two ways to go on, and the index of the right one."""

    context: str
    choices: tuple[str, ...]
    label: int


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """A question and every answer that is accepted, the first being the one to train on."""

    context: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat; ``role`` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """A conversation with at least one turn of the assistant."""

    messages: tuple[Message, ...]


Record = TextRecord | CompletionRecord | ChoiceRecord | AnswerRecord | ChatRecord

_Document = dict[str, object]


def read_records(path: Path) -> tuple[Record, ...]:
    """Returns the records of a JSON-lines file, all of one kind, in the file's order.

    The first two bytes tell whether the file is gzip-compressed, whatever its name is. Only the fields of the
    kind are kept, and the file is read line by line, so that memory holds the records and one line.

    Raises:
        DataError: the file cannot be read, is empty, truncated or not UTF-8, or a line is no JSON object, is of
            no known kind or of another kind than the first line, or has a field of a wrong type or range. The
            message names file and line and never quotes the text.
    """
    records: list[Record] = []
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        record = _parse(_document(line, where), where)
        if records and type(record) is not type(records[0]):
            expected, got = type(records[0]).__name__, type(record).__name__
            raise DataError(f"{where}: expected a {expected} as in the first line, got a {got}: one kind in a file")
        records.append(record)
    if not records:
        raise DataError(f"{path} is empty: expected one JSON object on each line")
    return tuple(records)


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Writes records as JSON lines that ``read_records`` reads back as they were."""
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with path.open("rb") as file:
            is_compressed = file.peek(len(_GZIP_MAGIC)).startswith(_GZIP_MAGIC)
            for line in gzip.GzipFile(fileobj=file) if is_compressed else file:
                number += 1
                yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}, line {number + 1}: the gzip data is truncated or damaged: {error}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _document(line: bytes, where: str) -> _Document:
    try:
        document = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: expected UTF-8, got another byte at position {error.start}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: expected a JSON object: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: expected a JSON object: {error}") from error
    if not isinstance(document, dict):
        raise DataError(f"{where}: expected a JSON object, got {_type_name(document)}")
    return document


def _parse(document: _Document, where: str) -> Record:
    for fields, parse in _KINDS:
        if all(field in document for field in fields):
            return parse(document, where)
    known = sorted({field for fields, _ in _KINDS for field in fields})
    present = ", ".join(field for field in known if field in document) or "none of these"
    kinds = " | ".join("{" + ", ".join(fields) + "}" for fields, _ in _KINDS)
    raise DataError(f"{where}: expected the fields of one kind, {kinds}; got {present}")


def _text(document: _Document, where: str) -> TextRecord:
    return TextRecord(_string(document["text"], "text", where))


def _completion(document: _Document, where: str) -> CompletionRecord:
    context = _string(document["context"], "context", where)
    return CompletionRecord(context, _filled_string(document["target"], "target", where))


def _answer(document: _Document, where: str) -> AnswerRecord:
    context = _string(document["context"], "context", where)
    return AnswerRecord(context, _filled_strings(document["answers"], "answers", where, at_least=1))


def _choice(document: _Document, where: str) -> ChoiceRecord:
    context = _string(document["context"], "context", where)
    choices = _filled_strings(document["choices"], "choices", where, at_least=_MIN_CHOICES)
    label = document["label"]
    if not isinstance(label, int) or isinstance(label, bool):
        raise DataError(f"{where}: expected label to be an integer, got {_type_name(label)}")
    if not 0 <= label < len(choices):
        raise DataError(f"{where}: expected label from 0 to {len(choices) - 1}, the index of a choice, got {label}")
    return ChoiceRecord(context, choices, label)


def _chat(document: _Document, where: str) -> ChatRecord:
    messages = tuple(
        _message(message, f"messages[{index}]", where)
        for index, message in enumerate(_list(document["messages"], "messages", where))
    )
    if all(message.role != "assistant" for message in messages):
        raise DataError(f"{where}: expected at least one message of the assistant in messages, got none")
    return ChatRecord(messages)


def _message(value: object, name: str, where: str) -> Message:
    if not isinstance(value, dict) or not {"role", "content"} <= value.keys():
        raise DataError(f"{where}: expected {name} to be an object with role and content")
    if value["role"] not in _ROLES:
        raise DataError(f"{where}: expected {name}.role to be one of {', '.join(_ROLES)}")
    if value["role"] == "assistant":
        return Message("assistant", _filled_string(value["content"], f"{name}.content", where))
    return Message(value["role"], _string(value["content"], f"{name}.content", where))


def _list(value: object, name: str, where: str) -> list[object]:
    if not isinstance(value, list):
        raise DataError(f"{where}: expected {name} to be a list, got {_type_name(value)}")
    return value


def _filled_strings(value: object, name: str, where: str, *, at_least: int) -> tuple[str, ...]:
    items = _list(value, name, where)
    if len(items) < at_least:
        raise DataError(f"{where}: expected at least {at_least} in {name}, got {len(items)}")
    return tuple(_filled_string(item, f"{name}[{index}]", where) for index, item in enumerate(items))


def _filled_string(value: object, name: str, where: str) -> str:
    text = _string(value, name, where)
    if not text.strip():
        raise DataError(f"{where}: expected {name} to hold text, got an empty string")
    return text


def _string(value: object, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: expected {name} to be a string, got {_type_name(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {name} has half of a surrogate pair at position {error.start}") from error
    return value


def _type_name(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


_KINDS: tuple[tuple[tuple[str, ...], Callable[[_Document, str], Record]], ...] = (
    (("messages",), _chat),
    (("context", "choices", "label"), _choice),
    (("context", "answers"), _answer),
    (("context", "target"), _completion),
    (("text",), _text),
)
