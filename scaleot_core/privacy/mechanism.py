"""The mechanisms: all ways in which something of a data owner's records may leave it.

A round with one of them::

    mechanism = DPSGD(steps=20, sample_rate=0.05, ...)                        # public settings, plain values
    way = mechanism.choose_way(attached, pad_token_id=0)                       # announce way.reason
    task = LocalTask(attached, examples, pad_token_id=0, way=way)
    release = mechanism.release(task, secret=SecretSource(), charge=charge, reporter=reporter)
    send(release.tensors)                                                      # and nothing else

``release`` is the only way out: it charges, durably, before it looks at a record or draws noise.
"""

from collections.abc import Mapping
from typing import ClassVar, Final, Protocol, runtime_checkable

from scaleot_core.adapters.adapter import AttachedAdapter
from scaleot_core.privacy.dp_sgd import DPSGD
from scaleot_core.privacy.dpzero import DPZero
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.lmo_dp import LMODP
from scaleot_core.privacy.per_example import ExampleWay
from scaleot_core.privacy.release import Charge, LocalTask, Release
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.privacy.update_noise import UpdateGaussian
from scaleot_core.progress import Reporter
from scaleot_core.shapes import TensorDict


@runtime_checkable
class Mechanism(Protocol):
    """A frozen dataclass of public settings for one round."""

    name: ClassVar[str]
    calibrated_noise: ClassVar[str]
    """The law, a name of ``noise.NOISES``, whose scale follows from a budget."""

    def event(self) -> PrivacyEvent:
        """Returns what a round costs; it follows from the settings alone and is known before anything is drawn."""
        ...

    def choose_way(self, attached: AttachedAdapter, *, pad_token_id: int) -> ExampleWay:
        """Returns how the examples are computed with this adapter, and why; it looks at no example."""
        ...

    def step(self, task: LocalTask, index: int, secret: SecretSource) -> TensorDict:
        """Returns what one step lets out, noise included; for ``release``, audits and tests: it does not charge."""
        ...

    def release(self, task: LocalTask, *, secret: SecretSource, charge: Charge, reporter: Reporter) -> Release:
        """Charges, draws, clips, adds noise, tunes the attached adapter, and returns what may leave.

        Whatever ``charge`` raises passes through, with no record looked at, no noise drawn and the adapter as it was.
        """
        ...


MECHANISMS: Final[Mapping[str, type[Mechanism]]] = {row.name: row for row in (DPSGD, DPZero, LMODP, UpdateGaussian)}
"""By the name of the run file; a new mechanism is one module and one row."""
