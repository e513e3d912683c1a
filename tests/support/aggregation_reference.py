"""Literal transcriptions of the papers' aggregation rules, one vector for each client, in float64."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scaleot_core.shapes import TensorDict


def as_vectors(states: Sequence[TensorDict]) -> list[Tensor]:
    return [torch.cat([state[name].flatten() for name in sorted(state)]).double() for state in states]


def literal_median(vectors: Sequence[Tensor]) -> Tensor:
    """Yin et al. (2018), definition 1: the usual one-dimensional median of every coordinate."""
    result = torch.empty_like(vectors[0])
    m = len(vectors)
    for k in range(len(result)):
        values = sorted(float(vector[k]) for vector in vectors)
        result[k] = values[m // 2] if m % 2 else (values[m // 2 - 1] + values[m // 2]) / 2
    return result


def literal_trimmed_mean(vectors: Sequence[Tensor], beta: float) -> Tensor:
    """Yin et al. (2018), definition 2: the largest and smallest beta share of every coordinate are removed."""
    result = torch.empty_like(vectors[0])
    m = len(vectors)
    removed = round(beta * m)
    assert removed == beta * m, "the paper's share is of whole clients"
    for k in range(len(result)):
        remaining = sorted(float(vector[k]) for vector in vectors)
        for _ in range(removed):
            remaining.remove(max(remaining))
            remaining.remove(min(remaining))
        result[k] = sum(remaining) / ((1 - 2 * beta) * m)
    return result


def literal_multi_krum(vectors: Sequence[Tensor], f: int, m: int) -> tuple[list[int], Tensor]:
    """Blanchard et al. (2017): s(i) sums |V_i - V_j|^2 over the n - f - 2 closest; the mean of the m best scores."""
    n = len(vectors)
    scores = []
    for i in range(n):
        distances = sorted(float(((vectors[i] - vectors[j]) ** 2).sum()) for j in range(n) if j != i)
        scores.append(sum(distances[: n - f - 2]))
    best = sorted(range(n), key=lambda i: scores[i])[:m]
    return sorted(best), sum((vectors[i] for i in best), torch.zeros_like(vectors[0])) / m


def literal_weiszfeld(vectors: Sequence[Tensor], nu: float, iterations: int) -> Tensor:
    """Pillutla et al. (2022), algorithm 2, equal alpha: beta_i = alpha_i / max(nu, |v - w_i|), v the beta-mean."""
    alpha = 1 / len(vectors)
    v = sum(alpha * w for w in vectors)
    for _ in range(iterations):
        beta = [alpha / max(nu, math.sqrt(float(((v - w) ** 2).sum()))) for w in vectors]
        v = sum(b * w for b, w in zip(beta, vectors, strict=True)) / sum(beta)
    return v


def literal_best_rank(matrix: Tensor, rank: int) -> Tensor:
    """Eckart and Young (1936): the sum of the first ``rank`` terms of the singular value decomposition."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return sum(values[k] * torch.outer(left[:, k], right[k]) for k in range(min(rank, len(values))))
