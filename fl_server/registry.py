"""The registry of organisations: who was approved with which keys, and who was revoked from which round.

It is only ever added to, and each line holds on to the one before (``chain_file``). What a server believes of an
organisation comes from here, never from a message or a certificate alone: this is asked again at every step.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from secrets import token_hex
from types import MappingProxyType
from typing import Annotated, Final, Literal, TypeAlias

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from pydantic import Field, TypeAdapter

from fl_server.chain_file import ChainFile, ChainHead, ChainLine, create_chain
from scaleot_core.bundle.canonical import Document, Instant, Sha256
from scaleot_core.bundle.keys import Recipient, VerifyingKey
from scaleot_core.bundle.public_keys import RecipientField, VerifyingKeyField
from scaleot_core.enrolment.transport_keys import MemberName, NodeKeyField, TlsKeyField
from scaleot_core.errors import BrokenLineError, InputError, ScaleOTError

FORMAT: Final = "scaleot.registry/1"
MAX_EXAMPLES: Final = 10**9
"""The most that a member's update may ever weigh."""

Examples = Annotated[int, Field(ge=1, le=MAX_EXAMPLES)]
Round = Annotated[int, Field(ge=0, le=2**53 - 1)]
RevocationReason = Annotated[str, Field(min_length=1, max_length=500)]


class Opened(Document):
    """The first line: a new registry."""

    format: Literal["scaleot.registry/1"] = FORMAT
    owner: tuple[Sha256, Sha256]
    """The key ids of the model owner."""
    registry: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """Random, so that no two registries have a line in common."""
    time: Instant
    type: Literal["opened"] = "opened"


class Approved(Document):
    """An organisation became a member, with these keys."""

    certificate_not_after: Instant
    certificate_sha256: Sha256
    max_examples: Examples
    node_public_key: NodeKeyField
    organisation: MemberName
    recipient: RecipientField
    request_sha256: Sha256
    time: Instant
    tls_public_key: TlsKeyField
    type: Literal["approved"] = "approved"
    verifying_key: VerifyingKeyField


class Renewed(Document):
    """A member got another certificate for the same key."""

    certificate_not_after: Instant
    certificate_sha256: Sha256
    organisation: MemberName
    time: Instant
    type: Literal["renewed"] = "renewed"


class Revoked(Document):
    """A member takes part no more: its updates count for rounds before ``from_round`` alone."""

    from_round: Round
    organisation: MemberName
    reason: RevocationReason
    time: Instant
    type: Literal["revoked"] = "revoked"


Change: TypeAlias = Approved | Renewed | Revoked
Entry: TypeAlias = Opened | Change
_ENTRIES: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="type")])


class Status(StrEnum):
    """Whether an organisation takes part."""

    ACTIVE = "active"
    REVOKED = "revoked"


@dataclass(frozen=True)
class Member:
    """An organisation that was approved."""

    name: str
    verifying_key: VerifyingKey
    recipient: Recipient
    node_public_key: str
    """OpenSSH's one line, as ``flwr supernode register`` reads it."""
    tls_public_key: EllipticCurvePublicKey
    certificate_sha256s: tuple[str, ...]
    """Of the certificates that were issued to it, in DER; the newest last."""
    certificate_not_after: datetime
    """Of the newest."""
    request_sha256: str
    """Of its enrolment request."""
    max_examples: int
    """The most that one of its updates may weigh."""
    approved_at: datetime
    revoked_from_round: int | None = None
    """``None`` for an active member."""

    @property
    def status(self) -> Status:
        """Whether it was revoked, from whatever round."""
        return Status.ACTIVE if self.revoked_from_round is None else Status.REVOKED

    def is_active(self, round_number: int) -> bool:
        """Whether its updates of a round count."""
        return self.revoked_from_round is None or round_number < self.revoked_from_round


class Registry:
    """A registry that was verified line by line. Every question sees what other processes added; safe between threads.

    All methods but ``max_examples`` raise ``InputError`` if the file cannot be read now, and ``ChainError``, naming the
    line, if it cannot be believed.
    """

    def __init__(self, path: Path) -> None:
        """Opens a registry.

        Raises:
            InputError: there is none.
            ChainError: a line is damaged, changed, moved or missing; it names the line.
        """
        self._file: ChainFile[Entry] = ChainFile(path, kind="registry of organisations", entries=_ENTRIES)
        self._members: Mapping[str, Member] = MappingProxyType({})
        self._catch_up()

    @property
    def head(self) -> ChainHead:
        """The last line."""
        self._catch_up()
        return self._file.head

    def member(self, name: str) -> Member | None:
        """Returns an organisation that was approved, revoked or not."""
        return self._catch_up().get(name)

    def members(self) -> tuple[Member, ...]:
        """Returns all that were approved, in this order, the revoked ones too."""
        return tuple(self._catch_up().values())

    def verifying_key(self, name: str) -> VerifyingKey | None:
        """Returns the key that a member signs with, revoked or not."""
        member = self.member(name)
        return None if member is None else member.verifying_key

    def is_active(self, name: str, round_number: int) -> bool:
        """Whether an organisation is a member whose updates of a round count."""
        member = self.member(name)
        return member is not None and member.is_active(round_number)

    def max_examples(self, name: str) -> int:
        """Returns the most that a member's update may weigh; raises ``InputError`` for an unknown name, too."""
        return self.known_member(name).max_examples

    def known_member(self, name: str) -> Member:
        """Returns a member; raises ``InputError`` if there is none of this name."""
        member = self.member(name)
        if member is None:
            raise InputError(f"no organisation {name[:80]!r} in the {self._file.source}; `scaleot org list` shows all")
        return member

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keeps all other writers out, for more than one step; raises ``InputError`` if one has written for 30 s."""
        with self._file.writing():
            yield

    def append(self, change: Change) -> ChainHead:
        """Adds a line; it is on the disk when this returns.

        Raises:
            InputError: the change cannot come next: a name or key is taken, or no such member is active.
            OutputError: it cannot be written.
        """
        with self.writing():
            try:
                changed = advance(self._catch_up(), change, number=self._file.head.number + 1)
            except BrokenLineError as error:
                raise InputError(f"the {self._file.source} was not changed: {error}") from error
            head = self._file.append(change)
            self._members = changed
            return head

    def _catch_up(self) -> Mapping[str, Member]:
        with self._file.guard:
            for line in self._file.read():
                try:
                    self._members = advance(self._members, line.entry, number=line.number)
                except BrokenLineError as error:
                    raise self._file.fail(line.number, str(error)) from error
            return self._members


def advance(members: Mapping[str, Member], entry: Entry, *, number: int) -> Mapping[str, Member]:
    """Returns the members after the line of this number.

    Raises:
        BrokenLineError: such an entry cannot come after those before it.
    """
    if isinstance(entry, Opened) != (number == 1):
        raise BrokenLineError("expected the opening of a registry as the first line and nowhere else")
    if isinstance(entry, Opened):
        return members
    if isinstance(entry, Approved):
        _check_is_new(members, entry)
        changed = _member(entry)
    else:
        member = members.get(entry.organisation)
        if member is None or member.revoked_from_round is not None:
            raise BrokenLineError(f"{entry.organisation} is no active member")
        if isinstance(entry, Renewed):
            issued = (*member.certificate_sha256s, entry.certificate_sha256)
            end = entry.certificate_not_after
            changed = replace(member, certificate_sha256s=issued, certificate_not_after=end)
        else:
            changed = replace(member, revoked_from_round=entry.from_round)
    return MappingProxyType({**members, changed.name: changed})


def create_registry(path: Path, owner: VerifyingKey, *, now: datetime) -> None:
    """Writes a new registry; the caller syncs its directory. Raises ``OSError`` if it cannot."""
    create_chain(path, Opened(owner=owner.key_ids, registry=token_hex(16), time=now))


def read_changes(path: Path) -> list[ChainLine[Entry]]:
    """Returns every line of a registry, the opening first; raises like ``Registry``."""
    return ChainFile[Entry](path, kind="registry of organisations", entries=_ENTRIES).read()


def allowed_organisations(path: Path) -> Callable[[str], bool]:
    """Returns what ``serve_bundles`` asks at every request: whether an organisation is a member that was not revoked.

    A revocation cuts off at once, whatever its round: rounds before it need nothing new. A registry that cannot be
    read or believed allows nobody.

    Raises:
        InputError, ChainError: as ``Registry``, at the start.
    """
    registry = Registry(path)

    def is_allowed(organisation: str) -> bool:
        try:
            member = registry.member(organisation)
        except ScaleOTError:
            return False
        return member is not None and member.status is Status.ACTIVE

    return is_allowed


def _member(entry: Approved) -> Member:
    return Member(
        name=entry.organisation,
        verifying_key=entry.verifying_key,
        recipient=entry.recipient,
        node_public_key=entry.node_public_key,
        tls_public_key=entry.tls_public_key,
        certificate_sha256s=(entry.certificate_sha256,),
        certificate_not_after=entry.certificate_not_after,
        request_sha256=entry.request_sha256,
        max_examples=entry.max_examples,
        approved_at=entry.time,
    )


def _check_is_new(members: Mapping[str, Member], entry: Approved) -> None:
    for member in members.values():
        if member.name.casefold() == entry.organisation.casefold():
            raise BrokenLineError(
                f"the name {entry.organisation} is taken, by {member.name}, and no name is used again; if only its "
                "admission was lost, `scaleot org renew` writes another"
            )
        if (
            not set(member.verifying_key.key_ids).isdisjoint(entry.verifying_key.key_ids)
            or member.recipient == entry.recipient
            or member.node_public_key == entry.node_public_key
            or member.tls_public_key == entry.tls_public_key
        ):
            raise BrokenLineError(f"{entry.organisation} has a key that {member.name} has, and no key is used twice")
