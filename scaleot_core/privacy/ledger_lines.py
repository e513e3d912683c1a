"""The lines of a ledger: what each may say, and how it holds on to the one before.

``bundle/hash_chain.py`` holds the lines together; ``LEDGER.md`` is the specification.
"""

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter, ValidationError

from scaleot_core.bundle.canonical import Document, Instant, Json, Sha256, canonical_json
from scaleot_core.bundle.hash_chain import NO_LINE, describe_fault, read_line, write_line
from scaleot_core.errors import BrokenLineError, LedgerError
from scaleot_core.privacy.data_set import MAX_INTEGER, DataSet
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.noise_ranges import LEAST_DELTA

FORMAT: Final = "scaleot.ledger/1"

Count = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
LineNumber = Annotated[int, Field(ge=1, le=MAX_INTEGER)]
Epsilon = Annotated[float, Field(gt=0, allow_inf_nan=False)]
RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
"""As in the federation's statements, which cannot be imported here: they bring PyTorch."""
Wording = Annotated[str, Field(min_length=1, max_length=500)]


LoggedEvent = Annotated[PrivacyEvent, PlainValidator(PrivacyEvent.from_json), PlainSerializer(PrivacyEvent.to_json)]


class LedgerTerms(Document):
    """What a ledger's figures are about; it never changes, since no figure would mean the same afterwards."""

    data_set: DataSet
    unit: Wording = "one training record"
    """Whose presence the releases hide."""
    neighbouring: Wording = "add/remove"
    """What a neighbouring data set is: one unit more or less."""
    delta: Annotated[float, Field(ge=LEAST_DELTA, lt=1)]


class Opened(Document):
    """The first line: a new ledger."""

    type: Literal["opened"] = "opened"
    format: Literal["scaleot.ledger/1"] = FORMAT
    ledger: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """Random, so that no two ledgers have a line in common."""
    terms: LedgerTerms
    budget_epsilon: Epsilon
    time: Instant


class BudgetChanged(Document):
    """The data owner gave another budget."""

    type: Literal["budget"] = "budget"
    budget_epsilon: Epsilon
    time: Instant


class Reserved(Document):
    """The releases of one round were charged: from here on their noise may be drawn."""

    type: Literal["reserved"] = "reserved"
    run: RunName
    round: Count
    events: Annotated[tuple[LoggedEvent, ...], Field(min_length=1)]
    statement: Wording
    """What is released, in words; never anything of the data."""
    time: Instant


class Committed(Document):
    """The released bytes of a reservation are stored: from here on they may leave, and no others for this round."""

    type: Literal["committed"] = "committed"
    reservation: LineNumber
    release_bytes: Count
    release_sha256: Sha256
    time: Instant


class Recovered(Document):
    """An unfinished line was cut off the end: a write that a crash interrupted, which nobody was told had happened."""

    type: Literal["recovered"] = "recovered"
    cut_bytes: Count
    cut_sha256: Sha256
    time: Instant


Entry: TypeAlias = Opened | BudgetChanged | Reserved | Committed | Recovered
RoundKey: TypeAlias = tuple[str, int]
"""A run's name and the number of a round in it."""


_ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="type")])


class LedgerChain:
    """The lines of one ledger, in order, each checked against all before it.

    ``source`` names the ledger in errors.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.entries: list[Entry] = []
        self.hashes: list[str] = []
        self._reservations: dict[RoundKey, int] = {}
        self._commits: dict[RoundKey, Committed] = {}

    @property
    def head(self) -> str:
        """The SHA-256 of the last line; it stands for the whole ledger."""
        return self.hashes[-1] if self.hashes else NO_LINE

    @property
    def opened(self) -> Opened:
        """The first line."""
        first = self.entries[0]
        if not isinstance(first, Opened):
            raise self._fault(1, "expected the ledger's opening")
        return first

    @property
    def budget_epsilon(self) -> float:
        """The budget that the last line about it gave."""
        budgets = (entry for entry in reversed(self.entries) if isinstance(entry, Opened | BudgetChanged))
        return next(budgets).budget_epsilon

    @property
    def reserved(self) -> tuple[Reserved, ...]:
        """Every round that was charged, in order, whether its noise was drawn or not."""
        return tuple(entry for entry in self.entries if isinstance(entry, Reserved))

    @property
    def events(self) -> tuple[PrivacyEvent, ...]:
        """Every event that was charged, in order."""
        return tuple(event for reserved in self.reserved for event in reserved.events)

    def reservation_of(self, key: RoundKey) -> int | None:
        """Returns the number of the line that last reserved a round."""
        return self._reservations.get(key)

    def commit_of(self, key: RoundKey) -> Committed | None:
        """Returns what was committed for a round."""
        return self._commits.get(key)

    def write_line(self, entry: Entry) -> bytes:
        """Returns the line, with its end, that would add an entry to this chain; the chain stays as it is.

        Raises:
            LedgerError: such an entry cannot come next.
        """
        self._check_next(entry)
        return write_line(entry.model_dump(mode="json"), number=len(self.entries) + 1, previous=self.head)

    def read_line(self, line: bytes) -> None:
        """Adds the next line, given without its end.

        Raises:
            LedgerError: it is not what was written there: damaged, changed, moved, or of another ledger or version.
        """
        number = len(self.entries) + 1
        try:
            value, digest = read_line(line, number=number, previous=self.head)
        except BrokenLineError as error:
            raise self._fault(number, str(error)) from error
        entry = self._parse(value, number)
        self._check_next(entry)
        self.entries.append(entry)
        self.hashes.append(digest)
        self._index(entry)

    def _parse(self, value: Json, number: int) -> Entry:
        spelling = canonical_json(value)
        try:
            entry = _ENTRY.validate_json(spelling)
        except ValidationError as error:
            fault = describe_fault(error, inside="entry")
            raise self._fault(number, f"{fault} (expected the format {FORMAT})") from error
        if canonical_json(entry.model_dump(mode="json")) != spelling:
            raise self._fault(number, "expected canonical JSON (RFC 8785), got another spelling of the same values")
        return entry

    def _check_next(self, entry: Entry) -> None:
        """Checks what no line can show alone: that the entry makes sense after those before it."""
        number = len(self.entries) + 1
        if isinstance(entry, Opened) != (number == 1):
            raise self._fault(number, "expected the ledger's opening as the first line and nowhere else")
        if isinstance(entry, Reserved) and (entry.run, entry.round) in self._commits:
            raise self._fault(number, f"round {entry.round} of run {entry.run} is released already: no second noise")
        if isinstance(entry, Committed):
            reserved = self.entries[entry.reservation - 1] if entry.reservation < number else None
            key = (reserved.run, reserved.round) if isinstance(reserved, Reserved) else None
            if key is None or self._reservations[key] != entry.reservation or key in self._commits:
                raise self._fault(number, f"expected line {entry.reservation} to be a reservation that still stands")

    def _index(self, entry: Entry) -> None:
        if isinstance(entry, Reserved):
            self._reservations[entry.run, entry.round] = len(self.entries)
        if isinstance(entry, Committed):
            reserved = self.entries[entry.reservation - 1]
            if isinstance(reserved, Reserved):
                self._commits[reserved.run, reserved.round] = entry

    def _fault(self, number: int, fault: str) -> LedgerError:
        return LedgerError(self.source, fault, line=number)
