"""Whose presence each mechanism hides, and the words that say so beside every epsilon.

Who only names it needs no PyTorch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

RECORD_UNIT: Final = ("one training record", "add/remove")
DATA_SET_UNIT: Final = ("all records of a data owner", "all of them or none")
_OF_WHOLE_DATA_SETS: Final = frozenset({"update-gaussian"})
_MOST_LISTED_RATES: Final = 3


@dataclass(frozen=True)
class PrivacyScope:
    """What an epsilon is about: without one of the three it means nothing."""

    unit: str
    """Whose presence is hidden."""
    neighbouring: str
    """How a neighbouring data set differs."""
    sampling: str
    """How the records of a release are drawn."""

    @property
    def hidden(self) -> str:
        """Unit and neighbours in words, for a sentence that names the sampling elsewhere."""
        return f"{self.unit}, neighbouring data sets by {self.neighbouring}"

    def at_delta(self, delta: float) -> str:
        """Returns the words that follow every epsilon."""
        return f"at delta {delta:g} for {self.hidden}, {self.sampling}"

    def to_json(self) -> dict[str, str]:
        """Returns plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, figures: Mapping[str, Any]) -> "PrivacyScope":
        """Returns the scope that stands among figures, as ``to_json`` wrote it."""
        return cls(figures["unit"], figures["neighbouring"], figures["sampling"])


def scope_of(unit: tuple[str, str], sample_rates: Iterable[float]) -> PrivacyScope:
    """Returns what an epsilon of releases at these rates is about; ``unit`` is as ``unit_of`` returns it."""
    return PrivacyScope(*unit, _sampling(sorted(set(sample_rates))))


def unit_of(mechanism: str) -> tuple[str, str]:
    """Returns whose presence a mechanism hides, and what a neighbouring data set is; a ledger is about one of both.

    The update of a whole data set moves by up to twice its bound when one record comes or goes, so what
    ``update-gaussian`` is charged means nothing in records.
    """
    return DATA_SET_UNIT if mechanism in _OF_WHOLE_DATA_SETS else RECORD_UNIT


def _sampling(rates: list[float]) -> str:
    if not rates:
        return "no release"
    if rates == [1.0]:
        return "without sampling"
    shown = list(dict.fromkeys(f"{rate:.4g}" for rate in rates))
    listed = ", ".join(shown) if len(shown) <= _MOST_LISTED_RATES else f"{shown[0]} to {shown[-1]}"
    return f"Poisson sampling with secret coins at rate {listed}"
