"""The data owner's ledger: every release is charged before its noise is drawn, and none has two noises.

One ledger stands for one data set, whatever runs and servers ask of it::

    create_ledger(directory, terms, budget_epsilon=8.0, now=now, mirror=elsewhere)      # once; ledger_file
    with open_ledger(directory, terms, epsilon_of=epsilon_of, now=now, mirror=elsewhere) as ledger:
        ledger.check_not_rolled_back(head_the_server_saw_last)
        release = ledger.released(run, round_number)                                     # after a crash: the same bytes
        if release is None:
            reservation = ledger.reserve(run, round_number, events, "adapter update", now=now)
            release = draw_noise_and_encode(...)                                         # now, and not before
            ledger.commit(reservation, release, now=now)
        send(release, ledger.head)

Epsilon is never stored: it is computed anew from every event that was charged, by the function the caller passes in.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from scaleot_core.errors import InputError, LedgerError
from scaleot_core.privacy.budget import Budget, EpsilonOf
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.ledger_file import LedgerFile, open_ledger_file
from scaleot_core.privacy.ledger_lines import BudgetChanged, Committed, LedgerChain, LedgerTerms, Reserved


@dataclass(frozen=True)
class Reservation:
    """A round whose releases are charged; it ends with the process that holds the ledger open."""

    run: str
    round_number: int
    line: int


@contextmanager
def open_ledger(
    directory: Path, terms: LedgerTerms, *, epsilon_of: EpsilonOf, now: datetime, mirror: Path | None = None
) -> Iterator["Ledger"]:
    """Opens the ledger of a data set for this process alone and closes it at the end of the block.

    Raises:
        InputError: there is no ledger, or another process has it open.
        LedgerError: it cannot be believed, is of another data set, unit, neighbouring relation or delta, or is older
            than the mirror.
        OutputError: the directory or the mirror cannot be written.
    """
    with open_ledger_file(directory, now=now, mirror=mirror) as file:
        check_terms(file.chain, terms)
        yield Ledger(file, epsilon_of)


class Ledger:
    """An open ledger; ``open_ledger`` makes it. For one thread at a time."""

    def __init__(self, file: LedgerFile, epsilon_of: EpsilonOf) -> None:
        self._file = file
        self._budget = Budget(file.chain, epsilon_of)
        self._live: set[int] = set()

    @property
    def chain(self) -> LedgerChain:
        """Every line, to read."""
        return self._file.chain

    @property
    def head(self) -> str:
        """The SHA-256 of the last line: it goes with every update, so that the server can notice an older copy."""
        return self._file.chain.head

    @property
    def budget(self) -> Budget:
        """What is spent and left."""
        return self._budget

    def reserve(
        self, run: str, round_number: int, events: Sequence[PrivacyEvent], statement: str, *, now: datetime
    ) -> Reservation:
        """Charges all releases of a round; when this returns, the charge is on the disk and noise may be drawn.

        A round that was reserved and not committed has lost its noise, and is reserved anew: both count. ``statement``
        says in words what is released and holds nothing of the data. Round 0 is for what is released before the first.

        Raises:
            BudgetExhaustedError: with these events the budget would be passed.
            LedgerError: the round is committed already: ``released`` has its bytes; or the file cannot be believed.
            InputError: run, round, events or statement are out of their range.
            OutputError: the disk is full or cannot be written.
        """
        try:
            entry = Reserved(run=run, round=round_number, events=tuple(events), statement=statement, time=now)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
            raise InputError(f"a reservation's {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from error
        self._budget.check(events, rounds=1)
        line = self._file.append(entry)
        self._live.add(line)
        return Reservation(run, round_number, line)

    def commit(self, reservation: Reservation, release: bytes, *, now: datetime) -> None:
        """Stores the bytes of a release; when this returns they may leave, and no others ever will for this round.

        Raises:
            LedgerError: the reservation was made by an earlier process, was committed, or gave way to a newer one; or
                the file cannot be believed.
            OutputError: the disk is full or cannot be written; the bytes must not leave.
        """
        key = (reservation.run, reservation.round_number)
        if reservation.line not in self._live or self._file.chain.reservation_of(key) != reservation.line:
            raise LedgerError(
                self._file.chain.source,
                "expected a reservation of this process that still stands; reserve the round anew and draw new noise",
                line=reservation.line,
            )
        digest = self._file.store_release(release)
        entry = Committed(reservation=reservation.line, release_bytes=len(release), release_sha256=digest, time=now)
        self._file.append(entry)
        self._live.remove(reservation.line)

    def released(self, run: str, round_number: int) -> bytes | None:
        """Returns the bytes that were committed for a round, to be sent again; ``None`` if none were.

        Raises:
            LedgerError: they are missing or are not the bytes that were committed.
        """
        committed = self._file.chain.commit_of((run, round_number))
        return None if committed is None else self._file.read_release(committed)

    def check_not_rolled_back(self, head: str) -> None:
        """Checks that this ledger has a line that somebody else has seen as its last one.

        Raises:
            LedgerError: it has not: an older copy of it was put back, or two copies of it went on apart. A head does
                not say where it stands, so the line named is the last at which they can have parted: the one behind
                this ledger's own last.
        """
        if head not in self._file.chain.hashes:
            raise LedgerError(
                self._file.chain.source,
                "at this line, or at an earlier one, it parted from the ledger that the server was told of: "
                f"{head} was its last line then and is none of its lines now. It is an older copy, or a copy of it was "
                "used elsewhere: put back the newest one",
                line=len(self._file.chain.hashes) + 1,
            )

    def change_budget(self, budget_epsilon: float, *, now: datetime) -> None:
        """Gives the ledger another budget, which it notes; what is spent stays spent.

        Raises:
            InputError: the budget is no positive number.
            LedgerError: the file cannot be believed.
            OutputError: the disk is full or cannot be written.
        """
        try:
            entry = BudgetChanged(budget_epsilon=budget_epsilon, time=now)
        except ValidationError as error:
            raise InputError(f"a ledger's budget: expected an epsilon above 0, got {budget_epsilon}") from error
        self._file.append(entry)


def check_terms(chain: LedgerChain, terms: LedgerTerms) -> None:
    """Checks that a ledger is about these terms; raises ``LedgerError`` naming the first that differs."""
    for name in LedgerTerms.model_fields:
        expected, got = getattr(terms, name), getattr(chain.opened.terms, name)
        if expected != got:
            raise LedgerError(
                chain.source,
                f"it is of another {name.replace('_', ' ')}: expected {expected}, got {got}. Give the ledger that was "
                "made for these, or make a new one; what two ledgers of the same records spent adds up",
                line=1,
            )
