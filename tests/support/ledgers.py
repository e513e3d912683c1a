"""A data owner's ledger for tests, and a sound accountant that needs no library."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from scaleot_core.privacy.data_set import fingerprint
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.ledger import Ledger, open_ledger
from scaleot_core.privacy.ledger_file import create_ledger, read_chain
from scaleot_core.privacy.ledger_lines import LedgerChain, LedgerTerms
from scaleot_core.training.records import CompletionRecord

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
RECORDS = tuple(CompletionRecord(f"question {number}", "answer") for number in range(12))
TERMS = LedgerTerms(data_set=fingerprint(RECORDS), delta=1e-5)
RUN = "run-1"


def gaussian(noise_multiplier: float = 10.0, count: int = 1) -> PrivacyEvent:
    return PrivacyEvent("gaussian", {"noise_multiplier": noise_multiplier}, 1.0, count)


def gaussian_epsilon(events: Sequence[PrivacyEvent], delta: float) -> float:
    """An upper bound by zero-concentrated privacy (Bun and Steinke 2016, 1.3 and 1.6): Gaussian, no sampling."""
    rho = math.fsum(event.count / (2 * event.parameters["noise_multiplier"] ** 2) for event in events)
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


@dataclass(frozen=True)
class Place:
    """A ledger on the disk, and the mirror of its head."""

    directory: Path
    mirror: Path | None

    @contextmanager
    def open(self, terms: LedgerTerms = TERMS) -> Iterator[Ledger]:
        with open_ledger(self.directory, terms, epsilon_of=gaussian_epsilon, now=NOW, mirror=self.mirror) as ledger:
            yield ledger

    def read(self) -> LedgerChain:
        return read_chain(self.directory)

    @property
    def lines(self) -> Path:
        return self.directory / "ledger.jsonl"

    @property
    def head(self) -> Path:
        return self.directory / "head.json"


def new_ledger(parent: Path, *, budget_epsilon: float = 8.0, is_mirrored: bool = False) -> Place:
    mirror = parent / "mirror" if is_mirrored else None
    if mirror is not None:
        mirror.mkdir()
    create_ledger(parent / "ledger", TERMS, budget_epsilon=budget_epsilon, now=NOW, mirror=mirror)
    return Place(parent / "ledger", mirror)


def release(ledger: Ledger, round_number: int, content: bytes, *events: PrivacyEvent, run: str = RUN) -> None:
    reservation = ledger.reserve(run, round_number, events or (gaussian(),), "adapter update", now=NOW)
    ledger.commit(reservation, content, now=NOW)
