"""What goes into a mechanism and what comes out: a local task, the charge, and the release."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from scaleot_core.adapters.adapter import AttachedAdapter
from scaleot_core.errors import InputError
from scaleot_core.models.positions import num_positions
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.per_example import ExampleWay
from scaleot_core.privacy.physical_batches import PhysicalBatch, physical_batches
from scaleot_core.shapes import TensorDict
from scaleot_core.training.data import EncodedExample

Charge: TypeAlias = Callable[[PrivacyEvent], object]
"""Makes the charge of an event durable before it returns, or raises: then no record is looked at and no noise drawn."""


@dataclass(frozen=True)
class LocalTask:
    """What a data owner tunes in a round, and on what."""

    attached: AttachedAdapter
    """At the round's global adapter; a release leaves it at the released one."""
    examples: Sequence[EncodedExample]
    """Private. One example is one record, the unit of privacy of all mechanisms but ``update-gaussian``."""
    pad_token_id: int
    way: ExampleWay
    """What the mechanism's ``choose_way`` gave for this adapter."""

    def physical_batches(self, examples: Sequence[EncodedExample]) -> Iterator[PhysicalBatch]:
        """Yields a sample of the examples in batches of fixed shapes; none for an empty sample."""
        return physical_batches(
            examples,
            rows=self.way.rows,
            pad_token_id=self.pad_token_id,
            max_positions=num_positions(self.attached.model),
            device=self.attached.device,
        )


@dataclass(frozen=True)
class Release:
    """All that leaves a client in a round, and what it cost; only a mechanism's ``release`` makes one."""

    mechanism: str
    """A name of ``MECHANISMS``."""
    tensors: TensorDict
    """On the CPU: the adapter in float32, or ``scalars``, int32 of shape (steps, directions)."""
    event: PrivacyEvent
    """What was charged for it."""


def check_settings(mechanism: str, **positive: float | int) -> None:
    """Checks a mechanism's public settings.

    Raises:
        InputError: one of them is not a finite number above 0.
    """
    for name, value in positive.items():
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{mechanism}, {name}: expected a finite number above 0, got {value}")
