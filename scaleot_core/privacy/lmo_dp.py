"""LMO-DP on zeroth-order scalars: the one place where the noise of Yang et al. (2024) has a sound account."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from scaleot_core.errors import InputError
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.noise_ranges import MOST_LMO_DIRECTIONS
from scaleot_core.privacy.scalar_mechanism import ScalarMechanism
from scaleot_core.privacy.zeroth_order import ZerothOrder


@dataclass(frozen=True)
class LMODP(ScalarMechanism):
    """The two-fold randomised Laplace noise on how losses change along a few public directions.

    The paper puts it on every coordinate of a gradient that is clipped in the Euclidean norm and accounts for one
    coordinate. There is no such mechanism here: its true epsilon is ten to sixty times the claim, and no noise of this
    family comes within sqrt(2) of the Gaussian's deviation there. One scalar a step is accounted exactly; for a few,
    each example's vector is clipped in the L1 norm and the bound of the greatest loss is charged. Neighbours and
    samples are those of ``dpzero``.

    Raises:
        InputError: there are more directions than ``MOST_LMO_DIRECTIONS``, or the law's parameters are out of range.
    """

    zeroth_order: ZerothOrder
    law: Mapping[str, float]
    """The parameters of ``lmo.Lmo`` but ``dimension``, which is the number of directions."""
    name: ClassVar[str] = "lmo-dp"
    calibrated_noise: ClassVar[str] = "lmo"

    def __post_init__(self) -> None:
        if self.zeroth_order.num_directions > MOST_LMO_DIRECTIONS:
            raise InputError(
                f"lmo-dp, num_directions: expected at most {MOST_LMO_DIRECTIONS}, got "
                f"{self.zeroth_order.num_directions}. A record may move all of them at once, its vector must be "
                "bounded in the L1 norm, and the noise costs far more than dpzero's; take dpzero"
            )
        self.event()

    def event(self) -> PrivacyEvent:
        """Returns what a round costs, known before anything is drawn."""
        parameters = {**self.law, "dimension": float(self.zeroth_order.num_directions)}
        return PrivacyEvent("lmo", parameters, self.zeroth_order.sample_rate, self.zeroth_order.steps)
