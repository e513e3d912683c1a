"""What the mechanisms share that let out scalars along public directions; they differ in their noise."""

from abc import ABC, abstractmethod
from typing import ClassVar

from scaleot_core.adapters.adapter import AttachedAdapter
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.gradient_way import choose_forward_way
from scaleot_core.privacy.per_example import ExampleWay
from scaleot_core.privacy.physical_batches import forward_rows
from scaleot_core.privacy.release import Charge, LocalTask, Release
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.privacy.zeroth_order import ZerothOrder, release_scalars, step_scalars
from scaleot_core.progress import Reporter
from scaleot_core.shapes import TensorDict


class ScalarMechanism(ABC):
    """Steps of ``zeroth_order`` under the noise that ``event`` names."""

    zeroth_order: ZerothOrder
    name: ClassVar[str]

    @abstractmethod
    def event(self) -> PrivacyEvent:
        """Returns what a round costs, known before anything is drawn."""

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
