"""A ledger as its owner reads it: what is spent and left, and every release."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from scaleot_core.bundle.canonical import Json
from scaleot_core.privacy.budget import Budget, EpsilonOf
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.ledger_lines import LedgerChain, LedgerTerms, Recovered, Reserved


class ReleaseStatus(StrEnum):
    """How far a release came. It counts either way."""

    RESERVED = "reserved"
    """Charged, and its bytes never left: its round is under way, or a crash took its noise."""
    COMMITTED = "committed"
    """Its bytes are stored, and left or may leave."""


@dataclass(frozen=True)
class LedgerRelease:
    """The releases of one round, as they were charged."""

    line: int
    """Of the reservation in the ledger, from 1."""
    run: str
    round_number: int
    time: datetime
    """Of the reservation."""
    events: tuple[PrivacyEvent, ...]
    statement: str
    status: ReleaseStatus
    release_sha256: str | None
    """Of the bytes that left or may leave."""


@dataclass(frozen=True)
class LedgerSummary:
    """A ledger at one moment; every epsilon is at the delta of ``terms`` and in its unit and neighbouring relation."""

    terms: LedgerTerms
    head: str
    budget_epsilon: float
    spent_epsilon: float
    left_epsilon: float
    rounds_that_fit: int | None
    """How many rounds with the events that were asked about still fit; ``None`` where none were."""
    releases: tuple[LedgerRelease, ...]
    recovered_lines: tuple[int, ...]
    """Where the ledger notes that a crash interrupted a write."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the data owner should know of the ledger's terms, for people."""
        delta, records = self.terms.delta, self.terms.data_set.records
        if delta < 1 / max(records, 1):
            return ()
        return (
            f"warning: delta {delta:g} is not below one over the {records} records: with that probability nothing is "
            "promised, so that one record at random might be published. A ledger keeps its delta: choose a smaller one "
            "before anything is charged, and make the ledger with it",
        )

    def to_json(self) -> Json:
        """Returns the summary as JSON values, without its warnings."""
        return {
            "terms": self.terms.model_dump(mode="json"),
            "head": self.head,
            "budget_epsilon": self.budget_epsilon,
            "spent_epsilon": self.spent_epsilon,
            "left_epsilon": self.left_epsilon,
            "rounds_that_fit": self.rounds_that_fit,
            "releases": [
                {
                    "line": release.line,
                    "run": release.run,
                    "round": release.round_number,
                    "time": release.time.isoformat(),
                    "events": [event.to_json() for event in release.events],
                    "statement": release.statement,
                    "status": release.status.value,
                    "release_sha256": release.release_sha256,
                }
                for release in self.releases
            ],
            "recovered_lines": list(self.recovered_lines),
        }


def summarise(
    chain: LedgerChain,
    epsilon_of: EpsilonOf,
    round_events: Sequence[PrivacyEvent] = (),
    *,
    budget_epsilon: float | None = None,
) -> LedgerSummary:
    """Returns the summary of a ledger's lines, which ``read_chain`` gives without the lock.

    ``round_events`` are those of one further round: the summary says how many such rounds still fit. The budget is that
    of the ledger's last word, unless another is given, which the next round will write down.
    """
    budget = Budget(chain, epsilon_of, epsilon=budget_epsilon)
    lines = list(enumerate(chain.entries, 1))
    return LedgerSummary(
        terms=chain.opened.terms,
        head=chain.head,
        budget_epsilon=budget.epsilon,
        spent_epsilon=budget.spent,
        left_epsilon=budget.left,
        rounds_that_fit=budget.rounds_that_fit(round_events) if round_events else None,
        releases=tuple(_release(chain, line, entry) for line, entry in lines if isinstance(entry, Reserved)),
        recovered_lines=tuple(line for line, entry in lines if isinstance(entry, Recovered)),
    )


def _release(chain: LedgerChain, line: int, reserved: Reserved) -> LedgerRelease:
    committed = chain.commit_of((reserved.run, reserved.round))
    is_committed = committed is not None and committed.reservation == line
    return LedgerRelease(
        line=line,
        run=reserved.run,
        round_number=reserved.round,
        time=reserved.time,
        events=reserved.events,
        statement=reserved.statement,
        status=ReleaseStatus.COMMITTED if is_committed else ReleaseStatus.RESERVED,
        release_sha256=committed.release_sha256 if committed is not None and is_committed else None,
    )
