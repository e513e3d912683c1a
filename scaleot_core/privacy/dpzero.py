"""DPZero with K directions: normal noise on how losses change along public directions."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from scaleot_core.adapters.adapter import AttachedAdapter
from scaleot_core.privacy.discrete_gaussian import CELLS_PER_UNIT
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.gradient_way import choose_forward_way
from scaleot_core.privacy.per_example import ExampleWay
from scaleot_core.privacy.physical_batches import forward_rows
from scaleot_core.privacy.release import Charge, LocalTask, Release
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.privacy.zeroth_order import ZerothOrder, release_scalars, step_scalars
from scaleot_core.progress import Reporter
from scaleot_core.shapes import TensorDict


@dataclass(frozen=True)
class DPZero:
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

    def choose_way(self, attached: AttachedAdapter, *, pad_token_id: int) -> ExampleWay:
        """Returns how many examples go into a forward pass, with the reason; no example is looked at."""
        settings = self.zeroth_order
        rows = settings.rows or forward_rows(settings.expected_batch_size, attached.device)
        return choose_forward_way(attached, rows=rows, pad_token_id=pad_token_id)

    def step(self, task: LocalTask, index: int, secret: SecretSource) -> TensorDict:
        """Returns the noisy scalars of one step; see ``step_scalars``. The charge is ``release``'s."""
        return step_scalars(self.zeroth_order, self.event().law(), task, index, secret)

    def release(self, task: LocalTask, *, secret: SecretSource, charge: Charge, reporter: Reporter) -> Release:
        """Charges the round, takes its steps, and returns the scalars; see ``release_scalars``."""
        event = self.event()
        charge(event)
        tensors = release_scalars(self.zeroth_order, event.law(), task, secret=secret, reporter=reporter)
        return Release(self.name, tensors, event)
