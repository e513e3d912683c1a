"""Clipping: each example's term is bounded before terms are added.

A term that is not finite becomes the one of the full norm whose coordinates are all equal: what an example adds must
be bounded and must depend on that example alone. To skip the example's batch instead, as FedKSeed does, tells the
world that it was there.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from scaleot_core.privacy.noise_ranges import Norm
from scaleot_core.shapes import TensorDict

ExampleFactors = Float[Tensor, " examples"]
"""One factor for each example."""


def clipped_sum(gradients: Mapping[str, Tensor], max_norm: float) -> TensorDict:
    """Returns the sum over examples of their gradients, each scaled to a joint norm of at most ``max_norm``.

    ``gradients`` has tensors (examples, ...) by name; one example's gradient is its row of all of them together, and
    ``g`` becomes ``g min(1, max_norm / |g|)`` (Abadi et al. 2016, algorithm 1). Norms and sums are in float64, so
    that a norm neither overflows nor vanishes and the sum, in float64 too, moves by no more than the bound.
    """
    factors = _factors(gradients, max_norm)
    constant = max_norm / sum(tensor[0].numel() for tensor in gradients.values()) ** 0.5 if len(factors) else 0.0
    sums = {}
    for name, tensor in gradients.items():
        total = torch.zeros(tensor.shape[1:], dtype=torch.float64, device=tensor.device)
        for row, factor in enumerate(factors.tolist()):
            if factor > 0:
                total.add_(tensor[row], alpha=factor)
            else:
                total.add_(constant)
        sums[name] = total
    return sums


def clip_vectors(vectors: NDArray[np.float64], max_norm: float, norm: Norm = "L2") -> NDArray[np.float64]:
    """Returns vectors (examples, coordinates) with each row scaled to a norm of at most ``max_norm``.

    No coordinate may be beyond 1e150, whose square is not finite either.
    """
    order = {"L1": 1, "L2": 2}[norm]
    constant = max_norm / vectors.shape[1] ** (1 / order)
    with np.errstate(over="ignore"):
        norms = np.linalg.norm(vectors, ord=order, axis=1, keepdims=True)
    is_finite = np.isfinite(norms)
    factors = max_norm / np.maximum(np.where(is_finite, norms, max_norm), max_norm)
    return np.where(is_finite, factors * np.where(is_finite, vectors, 0.0), constant)


def clip_to_cells(vectors: NDArray[np.float64], max_norm: float, norm: Norm, cells_per_unit: int) -> NDArray[np.int64]:
    """Returns vectors (examples, coordinates), clipped and rounded towards zero to cells ``max_norm / cells_per_unit``.

    Every row of the result has a norm of ``cells_per_unit`` at most, in integers and so beyond any rounding: with a
    bound near the least number of all, which a server may ask for, products of floats are wrong by a multiple of it.
    """
    order = {"L1": 1, "L2": 2}[norm]
    largest = np.max(np.abs(vectors), axis=1, keepdims=True, initial=0.0)
    is_finite = np.isfinite(largest)
    safe = np.where(is_finite, vectors, 0.0)
    scale = np.where(is_finite & (largest > 0), largest, 1.0)
    with np.errstate(over="ignore"):
        norms = scale * np.linalg.norm(safe / scale, ord=order, axis=1, keepdims=True)
        cells = np.trunc(safe / np.maximum(norms, max_norm) * cells_per_unit).astype(np.int64)
    is_within = (np.abs(cells) ** order).sum(axis=1, keepdims=True) <= cells_per_unit**order
    constant = math.floor(cells_per_unit / vectors.shape[1] ** (1 / order))
    kept: NDArray[np.int64] = np.where(is_finite & is_within, cells, constant)
    return kept


def clip_tensors(vector: TensorDict, max_norm: float) -> TensorDict:
    """Returns the float64 vector that the tensors are together, scaled to a joint norm of at most ``max_norm``."""
    return clipped_sum({name: tensor.unsqueeze(0) for name, tensor in vector.items()}, max_norm)


def _factors(gradients: Mapping[str, Tensor], max_norm: float) -> ExampleFactors:
    """Returns what to scale each example's gradient by, in (0, 1]; 0 stands for one that is not finite."""
    norms = [
        torch.linalg.vector_norm(tensor.flatten(start_dim=1), dim=1, dtype=torch.float64)
        for tensor in gradients.values()
    ]
    norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    factors: Tensor = (max_norm / norm).clamp(max=1.0)
    return torch.where(norm.isfinite(), factors, torch.zeros_like(factors))
