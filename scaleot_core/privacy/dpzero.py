"""DPZero with K directions: normal noise on how losses change along public directions."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from scaleot_core.privacy.discrete_gaussian import CELLS_PER_UNIT
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.scalar_mechanism import ScalarMechanism
from scaleot_core.privacy.zeroth_order import ZerothOrder


@dataclass(frozen=True)
class DPZero(ScalarMechanism):
    """Zhang et al. (2023), algorithm 2, for K = 1; DP-AggZO (Bao et al. 2025) for more, with one joint L2 clip.

    Neighbouring data sets differ by one example more or less. From the papers it differs in: Poisson samples
    and a public divisor, where they shuffle and divide by the batch; vectors divided by sqrt(K), not K, so that the
    clipping norm means the same at every K and near enough what ``dp-sgd``'s means; and noise from the operating
    system. The published code draws it from the generator that it has just seeded with the public seed.
    """

    zeroth_order: ZerothOrder
    noise_multiplier: float
    """The noise's standard deviation over ``max_grad_norm``."""
    noise: Literal["discrete-gaussian", "gaussian"] = "discrete-gaussian"
    """The discrete one is exact; the other is drawn as a float64 and rounded to the lattice."""
    name: ClassVar[str] = "dpzero"
    calibrated_noise: ClassVar[str] = "discrete-gaussian"

    def __post_init__(self) -> None:
        self.event()

    def event(self) -> PrivacyEvent:
        """Returns what a round costs, known before anything is drawn."""
        lattice = {"cells_per_unit": CELLS_PER_UNIT} if self.noise == "discrete-gaussian" else {}
        return PrivacyEvent(
            self.noise,
            {"noise_multiplier": self.noise_multiplier, **lattice},
            self.zeroth_order.sample_rate,
            self.zeroth_order.steps,
        )
