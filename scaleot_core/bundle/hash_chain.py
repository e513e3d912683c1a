"""The lines of an append-only record, each of which holds on to the one before.

Every line is one document in canonical JSON, ``{"entry", "number", "previous", "sha256"}``: its number from 1, the
SHA-256 of the line before, and its own, which is taken over the other three. Who knows the SHA-256 of the last line
knows the whole record. What an entry may say is the affair of the record: a ledger, a registry, an audit log.
"""

import hashlib
from typing import Annotated, Final

from pydantic import Field, ValidationError

from scaleot_core.bundle.canonical import Document, Json, Sha256, canonical_json
from scaleot_core.errors import BrokenLineError

NO_LINE: Final = "0" * 64
"""What the first line names in place of a line before it."""


class Line(Document):
    """A line without its own digest."""

    entry: Json
    number: Annotated[int, Field(ge=1)]
    previous: Sha256


def write_line(entry: Json, *, number: int, previous: str) -> bytes:
    """Returns a line with its end; raises ``ValueError`` for an entry that JSON cannot say."""
    content = canonical_json(Line(entry=entry, number=number, previous=previous).model_dump(mode="json"))
    return content[:-1] + _digest_field(content) + b"\n"


def read_line(line: bytes, *, number: int, previous: str) -> tuple[Json, str]:
    """Returns the entry and the SHA-256 of a line, given without its end.

    Raises:
        BrokenLineError: it is not what was written there: damaged, changed, moved, or of another record.
    """
    content = line[:-_DIGEST_FIELD_BYTES] + b"}"
    if line[-_DIGEST_FIELD_BYTES:] != _digest_field(content):
        raise BrokenLineError("its SHA-256 is not that of what it says: it was damaged or changed")
    parsed = _parse(content)
    if parsed.number != number or parsed.previous != previous:
        raise BrokenLineError(
            f"expected line {number} after {previous}, got line {parsed.number} after {parsed.previous}: "
            "lines were removed, added or moved"
        )
    return parsed.entry, hashlib.sha256(content).hexdigest()


def _parse(content: bytes) -> Line:
    try:
        parsed = Line.model_validate_json(content)
        is_canonical = canonical_json(parsed.model_dump(mode="json")) == content
    except ValidationError as error:
        raise BrokenLineError(describe_fault(error)) from error
    except (ValueError, RecursionError) as error:  # what canonical JSON cannot say, or nesting without end
        raise BrokenLineError("expected canonical JSON, got bytes that it cannot say") from error
    if not is_canonical:
        raise BrokenLineError("expected canonical JSON (RFC 8785), got another spelling of the same values")
    return parsed


def describe_fault(error: ValidationError, *, inside: str = "") -> str:
    """Returns the first fault of a line or, with the field that holds it as ``inside``, of a part of it."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(step) for step in (*filter(None, [inside]), *fault["loc"]))[:80]
    return f"{place}: {fault['msg']}"


def _digest_field(content: bytes) -> bytes:
    return b',"sha256":"' + hashlib.sha256(content).hexdigest().encode() + b'"}'


_DIGEST_FIELD_BYTES = len(_digest_field(b""))
