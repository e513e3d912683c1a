"""The exact mean of LoRA's products B A, factored again to LoRA's rank.

What a client's adapter does to the model is B A. The mean of all A and of all B apart does something else: the further
clients drift, the more.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from scaleot_core.errors import InputError
from scaleot_core.shapes import Matrix, TensorDict

DOWN, UP = ".lora_A", ".lora_B"


@dataclass(frozen=True)
class FactoredMean:
    """The matrix nearest to a mean of products, as two factors."""

    down: Matrix
    """A, float64, (rank, inputs)."""
    up: Matrix
    """B, float64, (outputs, rank)."""
    square: float
    """The exact mean's squared Frobenius norm."""
    residual_square: float
    """Of it, what the factors leave out."""


def mean_product(
    downs: Sequence[Matrix], ups: Sequence[Matrix], weights: Sequence[float], base_down: Matrix
) -> FactoredMean:
    """Returns the best approximation of sum w_i B_i A_i that has the rank of ``base_down``, (rank, inputs).

    ``downs`` are A_i, (rank_i, inputs), and ``ups`` B_i, (outputs, rank_i); ranks may differ. The truncated singular
    value decomposition of FlexLoRA (Bai et al., 2024), which computes it from the whole (outputs, inputs) matrix; here
    it is that of R_B R_A^T, from thin QR decompositions of the stacked factors, the same but for rounding.

    Where FlexLoRA leaves open how the singular values are shared out, they go to B. A's rows are orthogonal and as long
    as the clients' in the root mean square, so that learning goes on as it did; and a component of no weight still
    has a row in A, without which neither factor would ever get a gradient. ``base_down`` lends directions for such rows
    and counts for nothing else.
    """
    rank = base_down.shape[0]
    down = torch.cat([*downs, base_down]).double()
    up = torch.cat([weight * one.double() for weight, one in zip(weights, ups, strict=True)], dim=1)
    up = pad(up, (0, rank))  # B of ``base_down``
    basis_up, triangle_up = torch.linalg.qr(up)
    basis_down, triangle_down = torch.linalg.qr(down.T)
    left, singular_values, right = torch.linalg.svd(triangle_up @ triangle_down.T, full_matrices=False)
    row_length = math.sqrt(
        sum(float(one.double().square().sum()) for one in downs) / sum(one.shape[0] for one in downs)
    )
    row_length = row_length or 1.0
    new_down = row_length * (right[:rank] @ basis_down.T)
    new_up = (basis_up @ left[:, :rank]) * (singular_values[:rank] / row_length)
    lacking = rank - new_down.shape[0]  # more than the matrix has rows or columns
    squares = singular_values.square()
    return FactoredMean(
        down=pad(new_down, (0, 0, 0, lacking)),
        up=pad(new_up, (0, lacking)),
        square=float(squares.sum()),
        residual_square=float(squares[rank:].sum()),
    )


def product_mean(states: Sequence[TensorDict], weights: Sequence[int], base: TensorDict) -> tuple[TensorDict, float]:
    """Returns the LoRA adapter nearest to the ``weights``-weighted mean of the clients' products, and what it misses.

    That is the share of the mean's Frobenius norm, over all pairs together, that the rank has no room for: 0 to 1.

    Raises:
        InputError: a tensor is no A or B of a pair, so that there is no product.
    """
    names = [name.removesuffix(DOWN) for name in base if name.endswith(DOWN)]
    if {f"{name}{part}" for name in names for part in (DOWN, UP)} != base.keys():
        raise InputError(f"aggregation 'product' needs pairs of LoRA's A and B, got {', '.join(sorted(base))[:200]}")
    shares = [weight / sum(weights) for weight in weights]
    adapter: TensorDict = {}
    square = residual_square = 0.0
    for name in names:
        downs, ups = [state[name + DOWN] for state in states], [state[name + UP] for state in states]
        mean = mean_product(downs, ups, shares, base[name + DOWN])
        adapter |= {name + DOWN: mean.down.float().contiguous(), name + UP: mean.up.float().contiguous()}
        square, residual_square = square + mean.square, residual_square + mean.residual_square
    residual_share = math.sqrt(residual_square / square) if square else 0.0
    return {name: adapter[name] for name in base}, residual_share


def product_step_norm(state: TensorDict, base: TensorDict) -> float:
    """Returns the Frobenius norm of the step that LoRA's products B A take from ``base``, over all pairs together.

    0 where there are no pairs. From inner products of the factors, so that no product is ever made: twice the rank
    squared numbers, however large the matrix.
    """
    square = 0.0
    for name in (
        name.removesuffix(DOWN) for name in base if name.endswith(DOWN) and name.removesuffix(DOWN) + UP in base
    ):
        down = torch.cat([state[name + DOWN], base[name + DOWN]]).double()
        up = torch.cat([state[name + UP], -base[name + UP]], dim=1).double()
        square += float(((up.T @ up) * (down @ down.T)).sum())
    return math.sqrt(max(square, 0.0)) if not math.isnan(square) else math.inf
