"""How much of the full model's quality an attack on its emulator gets back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scaleot_core.evaluation import Metrics
from scaleot_core.model_privacy.floors import Floors
from scaleot_core.training.data import Record


@dataclass(frozen=True)
class Recovery:
    """Shares of the way from a floor (0) to the full model (1); beyond both where an attack is worse or better."""

    accuracy: float | None
    """None where the task has no accuracy, or the full model's is not above the floor."""
    loss: float | None
    """None where the full model's loss is not below that of random initialisation, or a loss is not finite."""
    f1: float | None = None
    """None where the task has no F1, or the full model's is not above that of random initialisation."""


@dataclass(frozen=True)
class Yardstick:
    """The held-out records that attacks are measured on, with what the full model and no model reach on them."""

    records: Sequence[Record]
    full: Metrics
    """The full model's, zero-shot."""
    floors: Floors

    def recovered(self, attack: Metrics) -> Recovery:
        """Returns what an untuned attack gives back, between the floors and the full model's zero-shot."""
        return recovery(attack, floors=self.floors, full=self.full)


def recovery(attack: Metrics, *, floors: Floors, full: Metrics) -> Recovery:
    """Returns ``(attack - floor) / (full - floor)`` for the accuracy, for the loss, and for F1."""
    return Recovery(
        accuracy=_share_of_way(attack.accuracy, floors.accuracy, full.accuracy),
        loss=_share_of_way(attack.loss, floors.loss, full.loss, -1),
        f1=_share_of_way(attack.f1, floors.random_initialisation.f1, full.f1),
    )


def _share_of_way(attack: float | None, floor: float | None, full: float | None, direction: int = 1) -> float | None:
    """Returns how far from ``floor`` to ``full`` the attack came; ``direction`` is -1 where less is better."""
    if attack is None or floor is None or full is None:
        return None
    way = direction * (full - floor)
    share = direction * (attack - floor) / way if way > 0 else math.nan
    return share if math.isfinite(share) else None
