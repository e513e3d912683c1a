"""From scalars back to an adapter: what a client did in a round of zeroth-order steps, rebuilt bit for bit.

The step of the client and the replay of the server are one function on one float32 vector, and all it does is to
multiply and subtract, rounded once each, as IEEE 754 demands of every machine. (PyTorch may fuse the two.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scaleot_core.errors import InputError
from scaleot_core.privacy.directions import AdapterVector, direction
from scaleot_core.shapes import TensorDict


@dataclass(frozen=True)
class ScalarSteps:
    """All public that turns the scalars of a round into movements of the adapter."""

    direction_key: int
    first_step: int
    """The round's first step, counted through all rounds of the run."""
    scale: float
    """How far one unit of a scalar moves the adapter along its direction, against it: the learning rate included."""


def replay(adapter: TensorDict, scalars: NDArray[np.int32] | NDArray[np.float64], steps: ScalarSteps) -> TensorDict:
    """Returns the adapter, float32 on the CPU, to which ``scalars`` (steps, directions) move the one given.

    From a client's own scalars it is the client's adapter, bit for bit. From the mean of several clients' scalars
    along shared directions it is the mean of their adapters in real arithmetic, since every step is linear in its
    scalars; in float32 the two differ by the rounding of steps times directions additions. The result of a round is
    by definition the replay of the mean.

    Raises:
        InputError: the scalars are no finite numbers in two dimensions.
    """
    if scalars.ndim != 2 or not np.isfinite(scalars).all():
        raise InputError(f"scalars: expected finite numbers of shape (steps, directions), got shape {scalars.shape}")
    vector = flatten(adapter)
    for index, row in enumerate(scalars):
        move(vector, row, steps, steps.first_step + index)
    return unflatten(vector, adapter)


def mean_scalars(clients: Sequence[NDArray[np.int32]], weights: Sequence[int]) -> NDArray[np.float64]:
    """Returns the weighted mean of clients' scalars, (steps, directions) each: an exact sum, divided once.

    Raises:
        InputError: there is no client, shapes differ, or weights are not positive.
    """
    if not clients or len({one.shape for one in clients}) > 1 or min(weights) < 1:
        raise InputError("scalars: expected those of one client or more, in one shape, with positive weights")
    total = np.zeros(clients[0].shape, dtype=object)  # Python's integers, which have no end
    for scalars, weight in zip(clients, weights, strict=True):
        total += weight * scalars.astype(object)
    return (total / sum(weights)).astype(np.float64)


def move(
    vector: AdapterVector, scalars: NDArray[np.int32] | NDArray[np.float64], steps: ScalarSteps, step: int
) -> None:
    """Moves ``vector`` in place by one step's scalars, one direction after the other."""
    for index, scalar in enumerate(scalars.tolist()):
        along = direction(steps.direction_key, step=step, index=index, size=vector.size)
        along *= np.float32(steps.scale * scalar)
        vector -= along


def flatten(adapter: Mapping[str, Tensor]) -> AdapterVector:
    """Returns a new vector of the adapter's tensors, sorted by name."""
    parts = [adapter[name].detach().cpu().float().flatten() for name in sorted(adapter)]
    vector: AdapterVector = torch.cat(parts).numpy()
    return vector


def unflatten(vector: AdapterVector, like: TensorDict) -> TensorDict:
    """Returns the tensors of a vector, float32 copies with the names and shapes of ``like``."""
    names = sorted(like)
    parts = torch.split(torch.from_numpy(vector), [like[name].numel() for name in names])
    return {name: part.clone().view(like[name].shape) for name, part in zip(names, parts, strict=True)}
