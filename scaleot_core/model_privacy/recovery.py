"""How much of the full model's quality an attack on its emulator gets back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scaleot_core.evaluation import Metrics
from scaleot_core.model_privacy.floors import Floors
from scaleot_core.training.data import Record


@dataclass(frozen=True)
class Recovery:
    """Shares of the way from a floor (0) to the goal (1); beyond both where an attack is worse or better.

    The goal is what the attack is held against: the full model zero-shot, or of an attack that is tuned, the plug-in.
    """

    accuracy: float | None
    """None where the task has no accuracy, or the goal's is not above the higher of the two floors."""
    loss: float | None
    """None where the goal's loss is not below that of random initialisation, or a loss is not finite."""
    f1: float | None = None
    """None where the task has no F1, or the goal's is not above that of random initialisation."""


@dataclass(frozen=True)
class Yardstick:
    """The held-out records that attacks are measured on, with what the full model and no model reach on them."""

    records: Sequence[Record]
    full: Metrics
    """The full model's, zero-shot."""
    floors: Floors

    def recovered(self, attack: Metrics) -> Recovery:
        """Returns what an attack that is not tuned gives back of the full model zero-shot."""
        return recovered_of(self.full, attack, self.floors)


def recovered_of(goal: Metrics, attack: Metrics, floors: Floors) -> Recovery:
    """Returns ``(attack - floor) / (goal - floor)`` for the accuracy, for the loss, and for F1."""
    return Recovery(
        accuracy=_share_of_way(attack.accuracy, floors.accuracy, goal.accuracy),
        loss=_share_of_way(attack.loss, floors.loss, goal.loss, -1),
        f1=_share_of_way(attack.f1, floors.random_initialisation.f1, goal.f1),
    )


def _share_of_way(attack: float | None, floor: float | None, goal: float | None, direction: int = 1) -> float | None:
    """Returns how far from ``floor`` to ``goal`` the attack came; ``direction`` is -1 where less is better."""
    if attack is None or floor is None or goal is None:
        return None
    way = direction * (goal - floor)
    share = direction * (attack - floor) / way if way > 0 else math.nan
    return share if math.isfinite(share) else None
