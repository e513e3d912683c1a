"""Noise on a whole round's update: the data set of a client is one record."""

from dataclasses import dataclass
from typing import ClassVar

from scaleot_core.adapters.adapter import AttachedAdapter
from scaleot_core.privacy.clipping import clip_tensors
from scaleot_core.privacy.dp_sgd import add_gaussian
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.per_example import ExampleWay
from scaleot_core.privacy.release import Charge, LocalTask, Release, check_settings
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.progress import Reporter, SilentReporter
from scaleot_core.shapes import TensorDict
from scaleot_core.training.local import LocalTraining, train_adapter


@dataclass(frozen=True)
class UpdateGaussian:
    """Tunes without privacy, clips the round's update once and adds normal noise once.

    The unit of privacy is the client's whole data set; neighbours are the data set and none at all, whose update is
    zero. (Between two data sets the update may move by twice the norm: half the noise multiplier.) So an example, a
    patient or a hundred of them are covered alike, at the price of noise as large as all that the client says. The
    noise is added before anything leaves, and the server is not trusted. McMahan et al. (2018) add it to the sum of
    many clients instead, which hides one client among many and needs a server that does so.
    """

    training: LocalTraining
    seed: int
    """Of the order of batches; may be public."""
    max_update_norm: float
    """The bound of the update, over all tensors."""
    noise_multiplier: float
    """The noise's standard deviation over ``max_update_norm``."""
    name: ClassVar[str] = "update-gaussian"
    calibrated_noise: ClassVar[str] = "gaussian"

    def __post_init__(self) -> None:
        check_settings(self.name, max_update_norm=self.max_update_norm)
        self.event()

    def event(self) -> PrivacyEvent:
        """Returns what a round costs, known before anything is drawn."""
        return PrivacyEvent("gaussian", {"noise_multiplier": self.noise_multiplier}, sample_rate=1.0, count=1)

    def choose_way(self, attached: AttachedAdapter, *, pad_token_id: int) -> ExampleWay:
        """Returns the way of ordinary training, which looks at no example alone."""
        return ExampleWay(self.training.batch_size, uses_hooks=False, reason="no example is looked at alone")

    def step(self, task: LocalTask, index: int, secret: SecretSource) -> TensorDict:
        """Returns the noisy update of a round, float64 by name; no examples give the noise alone."""
        before = task.attached.state()
        if task.examples:
            train_adapter(
                task.attached,
                task.examples,
                self.training,
                pad_token_id=task.pad_token_id,
                seed=self.seed,
                reporter=SilentReporter(),  # a loss on a screen is harmless, in a log that leaves it is not
            )
        after = task.attached.state()
        task.attached.load(before)
        update = {name: after[name].double() - before[name].double() for name in before}
        return add_gaussian(
            clip_tensors(update, self.max_update_norm), self.noise_multiplier * self.max_update_norm, secret
        )

    def release(self, task: LocalTask, *, secret: SecretSource, charge: Charge, reporter: Reporter) -> Release:
        """Charges the round, tunes the adapter, and returns it with its clipped and noised update."""
        event = self.event()
        charge(event)
        before = task.attached.state()
        with reporter.stage(self.name, steps=1) as stage:
            noisy = self.step(task, 0, secret)
            stage.advance()
        task.attached.load({name: (before[name].double() + noisy[name]).float() for name in before})
        return Release(self.name, task.attached.state(), event)
