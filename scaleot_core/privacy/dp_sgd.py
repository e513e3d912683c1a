"""DP-SGD: noise on the sum of clipped per-example gradients of a Poisson sample (Abadi et al. 2016, algorithm 1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from scaleot_core.adapters.adapter import AttachedAdapter
from scaleot_core.privacy.clipping import clipped_sum
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.gradient_way import choose_gradient_way
from scaleot_core.privacy.per_example import ExampleWay, gradients_of
from scaleot_core.privacy.physical_batches import gradient_rows
from scaleot_core.privacy.release import Charge, LocalTask, Release, check_settings
from scaleot_core.privacy.sampling import poisson_sample
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.progress import Reporter
from scaleot_core.shapes import TensorDict
from scaleot_core.training.data import EncodedExample
from scaleot_core.training.local import OptimizerName, make_optimizer


@dataclass(frozen=True)
class DPSGD:
    """Every step releases ``sum_i clip(g_i) + N(0, (noise_multiplier max_grad_norm)**2)`` over a Poisson sample.

    Neighbouring data sets differ by one example more or less. From the paper it differs in the divisor, which is the
    public expected batch size and never the secret actual one; an optimizer may follow, which is post-processing; and
    the loss of an example is the mean over its own target tokens. The gradients come by Opacus; sample, noise
    and clipping are our own: its generators repeat with the global seed.
    """

    steps: int
    sample_rate: float
    """The probability of every example to be in a step's batch, in (0, 1]."""
    expected_batch_size: float
    """Public: the sample rate times the *declared* number of examples."""
    max_grad_norm: float
    """The bound of one example's gradient, the paper's C."""
    noise_multiplier: float
    """The noise's standard deviation over ``max_grad_norm``, the paper's sigma."""
    learning_rate: float
    optimizer: OptimizerName = "adamw"
    rows: int | None = None
    """Examples in one backward pass, of which some may be empty: a matter of time and memory, not of the batch size.

    Unless given, what suits the device (see ``physical_batches``).
    """
    recomputes_activations: bool = False
    """Less memory for more time, one example at a time."""
    name: ClassVar[str] = "dp-sgd"
    calibrated_noise: ClassVar[str] = "gaussian"

    def __post_init__(self) -> None:
        check_settings(
            self.name,
            steps=self.steps,
            expected_batch_size=self.expected_batch_size,
            max_grad_norm=self.max_grad_norm,
            learning_rate=self.learning_rate,
            rows=1 if self.rows is None else self.rows,
        )
        self.event()

    def event(self) -> PrivacyEvent:
        """Returns what a round costs, known before anything is drawn."""
        return PrivacyEvent("gaussian", {"noise_multiplier": self.noise_multiplier}, self.sample_rate, self.steps)

    def choose_way(self, attached: AttachedAdapter, *, pad_token_id: int) -> ExampleWay:
        """Returns hooks or the loop, whichever is right for this adapter, with the reason; no example is looked at."""
        return choose_gradient_way(
            attached,
            rows=self.rows or gradient_rows(self.expected_batch_size, attached.device),
            pad_token_id=pad_token_id,
            recomputes_activations=self.recomputes_activations,
        )

    def step(self, task: LocalTask, index: int, secret: SecretSource) -> TensorDict:
        """Returns the noisy sum of one step, float64 by the parameters' names. The charge is ``release``'s.

        An empty sample gives the noise alone.
        """
        sample = poisson_sample(task.examples, self.sample_rate, secret)
        sums = sum_clipped_gradients(task, sample, self.max_grad_norm)
        return add_gaussian(sums, self.noise_multiplier * self.max_grad_norm, secret)

    def release(self, task: LocalTask, *, secret: SecretSource, charge: Charge, reporter: Reporter) -> Release:
        """Charges the round, tunes the adapter by noisy steps, and returns it.

        No loss is reported: it would be a release of its own.
        """
        event = self.event()
        charge(event)
        parameters = task.attached.trainable()
        optimizer = make_optimizer(list(parameters.values()), self.optimizer, self.learning_rate)
        with reporter.stage(self.name, steps=self.steps) as stage:
            for index in range(self.steps):
                for name, noisy in self.step(task, index, secret).items():
                    parameters[name].grad = (noisy / self.expected_batch_size).float()
                optimizer.step()
                stage.advance()
        optimizer.zero_grad(set_to_none=True)
        return Release(self.name, task.attached.state(), event)


def sum_clipped_gradients(task: LocalTask, sample: Sequence[EncodedExample], max_grad_norm: float) -> TensorDict:
    """Returns the sum of a sample's clipped gradients, float64 by the parameters' names: secret, no noise is in it.

    One example more or less moves it by a vector of at most ``max_grad_norm``, whichever the sample.
    """
    parameters = task.attached.trainable()
    sums = {name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in parameters.items()}
    for batch in task.physical_batches(sample):
        gradients = gradients_of(task.attached, batch, task.way)
        for name, clipped in clipped_sum(gradients, max_grad_norm).items():
            sums[name] += clipped
    return sums


def add_gaussian(sums: TensorDict, noise_stddev: float, secret: SecretSource) -> TensorDict:
    """Returns float64 sums with independent normal noise on every coordinate."""
    noisy = {}
    for name, total in sums.items():
        noise = torch.from_numpy(secret.normal(total.numel())).view(total.shape)
        noisy[name] = total + noise_stddev * noise.to(total.device)
    return noisy
