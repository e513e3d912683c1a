"""Steps that look at losses alone: how a Poisson sample's losses change along public directions, noised.

A step costs forward passes and lets out one integer for each direction; the adapter moves along the directions by
these, on the client and, replayed, on the server. Nothing of the size of the model is made, no gradient, and of the
adapter three vectors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from scaleot_core.adapters.adapter import AttachedAdapter
from scaleot_core.errors import InputError
from scaleot_core.privacy.clipping import clip_to_cells
from scaleot_core.privacy.directions import AdapterVector, direction
from scaleot_core.privacy.discrete_gaussian import CELLS_PER_UNIT
from scaleot_core.privacy.frozen_prefix import FrozenPrefix
from scaleot_core.privacy.noise import ScalarNoise
from scaleot_core.privacy.noise_ranges import Norm
from scaleot_core.privacy.release import LocalTask, check_settings
from scaleot_core.privacy.replay import ScalarSteps, flatten, move
from scaleot_core.privacy.sampling import poisson_sample
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.progress import Reporter
from scaleot_core.shapes import TensorDict
from scaleot_core.training.data import EncodedExample

_MOST_CELLS = 2**31 - 1


@dataclass(frozen=True)
class ZerothOrder:
    """Steps along ``num_directions`` public directions, of a round or of several."""

    steps: int
    sample_rate: float
    """The probability of every example to be in a step's batch, in (0, 1]."""
    expected_batch_size: float
    """Public: the sample rate times the *declared* number of examples."""
    max_grad_norm: float
    """The bound C of one example's vector of differences, in the norm that the noise asks for."""
    learning_rate: float
    """Of plain gradient descent: every step must stay linear in its scalars."""
    direction_key: int
    """Public, see ``directions.direction_key``; other clients may share it."""
    num_directions: int = 16
    """The K of DP-AggZO; 1 is DPZero as the paper has it."""
    first_step: int = 0
    """The round's first step, counted through all rounds of the run."""
    smoothing: float = 1e-3
    """How far the adapter is moved to and fro along a direction, the papers' lambda."""
    rows: int | None = None
    """Examples in one forward pass, of which some may be empty: a matter of time and memory, not of the batch size.

    Unless given, what suits the device (see ``physical_batches``).
    """

    def __post_init__(self) -> None:
        check_settings(
            "zeroth order",
            steps=self.steps,
            expected_batch_size=self.expected_batch_size,
            max_grad_norm=self.max_grad_norm,
            learning_rate=self.learning_rate,
            num_directions=self.num_directions,
            smoothing=self.smoothing,
            rows=1 if self.rows is None else self.rows,
        )
        if not 0 <= self.direction_key < 2**128 or self.first_step < 0:
            raise InputError("zeroth order: expected a direction key of 128 bits and a first step of 0 or more")

    @property
    def scalar_steps(self) -> ScalarSteps:
        """How the scalars move the adapter, for ``replay``.

        A unit of a scalar is one cell of the lattice, ``max_grad_norm / CELLS_PER_UNIT``, of a sum of vectors
        ``(D_1, ..., D_K) / sqrt(K)``; the estimate of the gradient is ``sum_k s_k z_k / (sqrt(K) expected batch)``.
        """
        cell = self.max_grad_norm / CELLS_PER_UNIT
        share = self.expected_batch_size * math.sqrt(self.num_directions)
        return ScalarSteps(self.direction_key, self.first_step, self.learning_rate * cell / share)


def step_scalars(
    settings: ZerothOrder, law: ScalarNoise, task: LocalTask, index: int, secret: SecretSource
) -> TensorDict:
    """Returns what the round's step ``index`` lets out: ``scalars``, int32 (directions,), in cells of the lattice.

    An empty sample gives noise alone. Values that int32 cannot hold are brought to its ends, after the noise.
    """
    sample = poisson_sample(task.examples, settings.sample_rate, secret)
    cells = sum_clipped_cells(settings, law.norm, task, sample, index)
    noise = np.rint(law.sample(secret, settings.num_directions) * CELLS_PER_UNIT)
    noisy = np.clip(cells + noise, -_MOST_CELLS, _MOST_CELLS).astype(np.int32)
    return {"scalars": torch.from_numpy(noisy)}


def sum_clipped_cells(
    settings: ZerothOrder, norm: Norm, task: LocalTask, sample: Sequence[EncodedExample], index: int
) -> NDArray[np.int64]:
    """Returns the sum of a sample's vectors in cells of the lattice, (directions,): secret, no noise is in it.

    Each example's vector ``(D_1, ..., D_K) / sqrt(K)`` is clipped as a whole, ``D_k = (l(x + lambda z_k) - l(x -
    lambda z_k)) / (2 lambda)``, and rounded towards zero to the lattice, which keeps its norm's bound. Sums are of
    integers, so that an example more or less moves them by its own vector exactly.
    """
    vectors = example_differences(settings, task, sample, index) / math.sqrt(settings.num_directions)
    cells = clip_to_cells(vectors, settings.max_grad_norm, norm, int(CELLS_PER_UNIT))
    total: NDArray[np.int64] = cells.sum(axis=0)
    return total


def release_scalars(
    settings: ZerothOrder, law: ScalarNoise, task: LocalTask, *, secret: SecretSource, reporter: Reporter
) -> TensorDict:
    """Takes the round's steps, each on the adapter that the one before left, and returns all scalars.

    Afterwards the attached adapter is exactly what ``replay`` makes of them.
    """
    adapter = flatten(task.attached.trainable())
    scalars = []
    with reporter.stage("zeroth-order steps", steps=settings.steps) as stage:
        for index in range(settings.steps):
            scalars.append(step_scalars(settings, law, task, index, secret)["scalars"])
            move(adapter, scalars[-1].numpy(), settings.scalar_steps, settings.first_step + index)
            write_vector(task.attached, adapter)
            stage.advance()
    return {"scalars": torch.stack(scalars)}


def example_differences(
    settings: ZerothOrder, task: LocalTask, sample: Sequence[EncodedExample], index: int
) -> NDArray[np.float64]:
    """Returns the finite differences of each example's loss along each direction, (examples, directions).

    The attached adapter is put back exactly. The order of the examples is that of their physical batches.
    """
    batches = list(task.physical_batches(sample))
    differences = np.empty((len(sample), settings.num_directions))
    if not batches:
        return differences
    adapter, prefix = flatten(task.attached.trainable()), FrozenPrefix(task.attached, batches)
    try:
        for k in range(settings.num_directions):
            along = direction(settings.direction_key, step=settings.first_step + index, index=k, size=adapter.size)
            along *= np.float32(settings.smoothing)
            ahead = _losses_at(task, prefix, adapter + along)
            behind = _losses_at(task, prefix, adapter - along)
            differences[:, k] = (ahead - behind) / (2 * settings.smoothing)
    finally:
        write_vector(task.attached, adapter)
    return differences


def write_vector(attached: AttachedAdapter, vector: AdapterVector) -> None:
    """Copies a vector's values into the attached adapter's parameters."""
    parameters = attached.trainable()  # sorted by name, as vectors are
    parts = torch.split(torch.from_numpy(vector), [parameter.numel() for parameter in parameters.values()])
    with torch.no_grad():
        for parameter, part in zip(parameters.values(), parts, strict=True):
            parameter.copy_(part.view(parameter.shape))


def _losses_at(task: LocalTask, prefix: FrozenPrefix, adapter: AdapterVector) -> NDArray[np.float64]:
    write_vector(task.attached, adapter)
    losses: NDArray[np.float64] = prefix.losses().double().cpu().numpy()
    return losses
