"""Documents in canonical JSON (RFC 8785): one value has one byte string, so what was signed is what is read.

Every document that comes from outside is read by ``read_document``: a size limit first, then the canonical form, then
a strict schema. A byte string that is not the canonical form of its own value is refused; that one rule already covers
duplicate keys, white space, NaN and infinity, and two parsers reading two things.
"""

import base64
import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import rfc8785
from pydantic import BaseModel, ConfigDict, PlainSerializer, PlainValidator, StringConstraints, ValidationError

from scaleot_core.errors import VerificationError

Json: TypeAlias = Any
"""What JSON can say. (A recursive alias would be exact, but annotations are also checked at run time.)"""

Kind: TypeAlias = Literal[
    "bundle", "grant", "inner", "newest", "request", "enrolment", "admission", "head", "statement", "certificate"
]
"""Which document is read: the first part of the codes ``.size``, ``.json`` and ``.fields``."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 digest in lower-case hexadecimal."""


class Document(BaseModel):
    """The base of every schema here: frozen, no unknown field, no missing field, no conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


DocumentType = TypeVar("DocumentType", bound=Document)


def canonical_json(value: Json) -> bytes:
    """Returns the canonical JSON of a value.

    Raises ``ValueError`` for what JSON cannot say: NaN, infinity, integers beyond 2**53 - 1, lone surrogates, keys
    that are no strings, other types, and nesting deeper than the interpreter's limit.
    """
    try:
        return rfc8785.dumps(value)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_canonical(data: bytes, *, kind: Kind, limit_bytes: int) -> Json:
    """Returns the value whose canonical JSON is exactly ``data``; raises ``VerificationError`` for any other bytes."""
    if len(data) > limit_bytes:
        raise VerificationError(f"{kind}.size", f"expected at most {limit_bytes} bytes of JSON, got {len(data)}")
    try:
        value = json.loads(data.decode())
        is_canonical = canonical_json(value) == data
    except (ValueError, RecursionError) as error:
        raise VerificationError(f"{kind}.json", "expected canonical JSON, got bytes that are no JSON") from error
    if not is_canonical:
        raise VerificationError(f"{kind}.json", "expected canonical JSON (RFC 8785), got another form of JSON")
    return value


def read_document(schema: type[DocumentType], data: bytes, *, kind: Kind, limit_bytes: int) -> DocumentType:
    """Returns the document that ``data`` holds.

    Raises ``VerificationError``: ``.size`` over the limit, ``.json`` not canonical JSON, ``.fields`` not the schema.
    """
    parse_canonical(data, kind=kind, limit_bytes=limit_bytes)
    try:
        return schema.model_validate_json(data)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(step) for step in fault["loc"])[:80]  # may be an unknown field's name: any text
        raise VerificationError(f"{kind}.fields", f"{schema.__name__}, field {place!r}: {fault['msg']}") from error


def write_document(document: Document) -> bytes:
    """Returns the canonical JSON of a document; raises ``ValueError`` for a value that JSON cannot say."""
    return canonical_json(document.model_dump(mode="json"))


def _encode_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode_base64(value: Json) -> bytes:
    if isinstance(value, bytes):  # built by our own code; JSON has no bytes
        return value
    if not isinstance(value, str):
        raise ValueError("expected a string of base64")  # noqa: TRY004 (pydantic reports only ValueError)
    data = base64.b64decode(value, validate=True)
    if _encode_base64(data) != value:  # the unused bits of the last character must be zero: one value, one text
        raise ValueError("expected base64 in its canonical form")
    return data


Base64 = Annotated[bytes, PlainValidator(_decode_base64), PlainSerializer(_encode_base64)]
"""Bytes as base64 (RFC 4648, section 4, with padding), in the one canonical form."""


def _write_instant(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat(timespec="seconds")


def _read_instant(value: Json) -> datetime:
    if isinstance(value, datetime):  # built by our own code; JSON has no instants
        return value
    if not isinstance(value, str):
        raise ValueError("expected an instant such as 2027-05-01T00:00:00+00:00")  # noqa: TRY004 (as above)
    instant = datetime.fromisoformat(value)
    if instant.tzinfo != UTC or instant.isoformat(timespec="seconds") != value:
        raise ValueError("expected an instant such as 2027-05-01T00:00:00+00:00")
    return instant


Instant = Annotated[datetime, PlainValidator(_read_instant), PlainSerializer(_write_instant)]
"""A moment in UTC, to the second, as ``2027-05-01T00:00:00+00:00`` and in no other spelling."""
