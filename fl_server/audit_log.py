"""The audit log: what happened in a federation, in lines that nobody can change, drop, add or move unnoticed.

Each line holds on to the one before, so a **head**, the number and SHA-256 of the last line, stands for all of them.
The owner signs heads and hands them out: who keeps one can later tell that the log was cut off, or that the owner
shows different logs to different members. Within the log alone nothing stops the owner from writing a new one.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from secrets import token_hex
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter, ValidationError

from fl_server.chain_file import ChainFile, ChainHead, ChainLine, create_chain
from scaleot_core.bundle.canonical import Document, Instant, Json, Sha256, canonical_json, read_document, write_document
from scaleot_core.bundle.envelope import sign_statement, verify_statement
from scaleot_core.bundle.files import read_small_file
from scaleot_core.bundle.hash_chain import describe_fault
from scaleot_core.bundle.key_files import load_verifying_key
from scaleot_core.bundle.keys import SigningKey, VerifyingKey
from scaleot_core.errors import ChainError, InputError

FORMAT: Final = "scaleot.audit/1"
HEAD_TYPE: Final = "application/vnd.scaleot.audit-head+json"
MAX_HEAD_BYTES = 16 * 1024


class AuditEntry(Document):
    """One event: what kind, when, and what there is to say of it; never keys, never private text."""

    body: dict[str, Json]
    time: Instant
    type: Annotated[str, Field(pattern=r"^[a-z0-9.-]{1,64}$")]


class _OpeningBody(Document):
    """What the first line says."""

    format: Literal["scaleot.audit/1"] = FORMAT
    log: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """Random, so that no two logs have a line in common."""
    owner: tuple[Sha256, Sha256]
    """The key ids of whoever signs heads of this log."""


class _Opening(Document):
    """The first line."""

    body: _OpeningBody
    time: Instant
    type: Literal["opened"] = "opened"


class SignedHead(Document):
    """What the owner signs: that this line was the last one of its log at that time."""

    log: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    number: Annotated[int, Field(ge=1)]
    sha256: Sha256
    time: Instant
    type: Literal["scaleot.audit-head/1"] = "scaleot.audit-head/1"


_ENTRIES: TypeAdapter[AuditEntry] = TypeAdapter(AuditEntry)


class AuditLog:
    """An audit log that was verified line by line; any number of processes and threads may append to it."""

    def __init__(self, path: Path, *, is_copy: bool = False) -> None:
        """Opens a log, or a copy of one, which may come without the head beside it.

        Raises:
            InputError: there is none.
            ChainError: a line is damaged, changed, moved or missing; it names the line.
        """
        self._path = path
        self._file = _open(path, is_copy=is_copy)
        lines = self._file.read()
        if not lines:
            raise self._file.fail(1, "it is missing: the file is empty")
        self._opening = self._read_opening(lines[0].entry)

    @property
    def head(self) -> ChainHead:
        """The last line that this object knows of."""
        return self._file.head

    def check_owner(self, owner: VerifyingKey) -> None:
        """Raises ``ChainError`` if the log was opened for another owner."""
        if self._opening.owner != owner.key_ids:
            raise ChainError(self._file.source, "it is the log of another owner than the key's", line=1)

    def events(self) -> list[ChainLine[AuditEntry]]:
        """Returns every line that is in the file now, the opening first; none is kept in memory before."""
        return _open(self._path, is_copy=False).read()

    def append(self, type: str, body: Mapping[str, Json], *, now: datetime) -> ChainHead:  # noqa: A002 - the field's name
        """Adds an event and returns the new head; it is on the disk by then.

        Raises:
            ValueError: the event's type has other characters than ``a-z0-9.-``, its body cannot be said in JSON, or
                its line would be longer than 64 KiB.
            InputError: another process has been writing for 30 seconds.
            ChainError: the log was changed meanwhile.
            OutputError: it cannot be written.
        """
        canonical_json(dict(body))  # raises for what JSON cannot say, where pydantic would write something else
        entry = AuditEntry(body=dict(body), time=now.replace(microsecond=0), type=type)
        with self._file.writing():
            self._file.read()
            return self._file.append(entry)

    def signed_head(self, owner: SigningKey, *, now: datetime) -> bytes:
        """Returns the envelope in which the owner says what the last line is."""
        head = self.head
        document = SignedHead(log=self._opening.log, number=head.number, sha256=head.sha256, time=now)
        return sign_statement(write_document(document), HEAD_TYPE, owner)

    def check_extends(self, head: SignedHead) -> None:
        """Checks that this log has the line that was its last one once.

        Raises:
            ChainError: the line is missing or another, or the head is another log's.
        """
        source = self._file.source
        if head.log != self._opening.log:
            raise ChainError(source, f"the signed head is that of log {head.log}, and this one is {self._opening.log}")
        digest = self._file.digest_of(head.number)
        if digest is None:
            fault = (
                f"it is missing: the owner signed a head with line {head.number} on {head.time}; the log was cut off"
            )
            raise ChainError(source, fault, line=self.head.number + 1)
        if digest != head.sha256:
            raise ChainError(
                source,
                f"the owner signed it as {head.sha256} on {head.time}, and here it is {digest}: there are two logs, "
                "of which neither extends the other",
                line=head.number,
            )

    def _read_opening(self, first: AuditEntry) -> _OpeningBody:
        try:
            return _Opening.model_validate_json(write_document(first)).body
        except ValidationError as error:
            fault = f"{describe_fault(error, inside='entry')} (expected the opening of a log in the format {FORMAT})"
            raise self._file.fail(1, fault) from error


def _open(path: Path, *, is_copy: bool) -> ChainFile[AuditEntry]:
    return ChainFile(path, kind="audit log", entries=_ENTRIES, is_copy=is_copy)


def create_audit_log(path: Path, owner: VerifyingKey, *, now: datetime) -> None:
    """Writes a new log; the caller syncs its directory. Raises ``OSError`` if it cannot."""
    create_chain(path, _Opening(body=_OpeningBody(log=token_hex(16), owner=owner.key_ids), time=now))


def read_signed_head(envelope: bytes, owner: VerifyingKey) -> SignedHead:
    """Returns the head in an envelope.

    Raises:
        VerificationError: ``head.size``, ``head.json``, ``head.fields``, or ``head.signature`` if the owner did not
            sign it.
    """
    statement = verify_statement(envelope, HEAD_TYPE, owner, kind="head", limit_bytes=MAX_HEAD_BYTES)
    return read_document(SignedHead, statement, kind="head", limit_bytes=MAX_HEAD_BYTES)


def verify_copy(path: Path, heads: Sequence[Path], owner_public_key: Path | None) -> ChainHead:
    """Verifies a log, or a copy of one, and returns its last line; nothing but the files is needed.

    Raises:
        InputError: a file cannot be read, or there are heads and no key to verify them by.
        ChainError: a line is damaged, changed, moved, missing, or another than the owner signed; it names the line.
        VerificationError: a head is not signed by the owner.
    """
    if heads and owner_public_key is None:
        raise InputError("--head needs --owner-public-key: without the owner's key, a head could be anybody's")
    log = AuditLog(path, is_copy=True)
    if owner_public_key is not None:
        owner = load_verifying_key(owner_public_key)
        log.check_owner(owner)
        for head in heads:
            log.check_extends(read_signed_head(read_small_file(head, MAX_HEAD_BYTES).strip(), owner))
    return log.head
