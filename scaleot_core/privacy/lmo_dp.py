"""LMO-DP on zeroth-order scalars: the one place where the noise of Yang et al. (2024) has a sound account."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from scaleot_core.adapters.adapter import AttachedAdapter
from scaleot_core.errors import InputError
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.gradient_way import choose_forward_way
from scaleot_core.privacy.noise_ranges import MOST_LMO_DIRECTIONS
from scaleot_core.privacy.per_example import ExampleWay
from scaleot_core.privacy.physical_batches import forward_rows
from scaleot_core.privacy.release import Charge, LocalTask, Release
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.privacy.zeroth_order import ZerothOrder, release_scalars, step_scalars
from scaleot_core.progress import Reporter
from scaleot_core.shapes import TensorDict


@dataclass(frozen=True)
class LMODP:
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
