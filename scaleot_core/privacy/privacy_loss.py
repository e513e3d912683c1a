"""From a noise to its privacy-loss distribution: what the accountant composes. Every one is an upper bound.

The pair of neighbouring outputs is (noise, 1 + noise) with densities p(x) and p(x - 1); under Poisson sampling with
rate q the second becomes the mixture (1 - q) p(x) + q p(x - 1). Both directions, a record removed and a record added,
are kept apart, composed apart, and the worse one is reported (Zhu, Dong, Wang 2022, "Optimal accounting of differential
privacy via characteristic function").
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from dp_accounting.pld import pld_pmf
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

from scaleot_core.privacy.secret_random import Floats

LOSS_INTERVAL: Final = 1e-4
"""Losses are whole multiples of it. One for all, since only distributions on one grid compose."""


@dataclass(frozen=True)
class OutputCells:
    """A partition of the outputs: how likely each cell is for a sum of 0 and of 1, and how the two densities relate.

    All arrays have shape (cells,). Within a cell ln p(x - 1) - ln p(x) lies between ``least_ratio`` and
    ``greatest_ratio``. What no cell covers counts as an infinite loss.
    """

    unshifted: Floats
    """The probability of the cell under p(x)."""
    shifted: Floats
    """Under p(x - 1)."""
    least_ratio: Floats
    greatest_ratio: Floats


def symmetric_cells(edges: Floats, survival: Callable[[Floats], Floats], log_ratios: Floats) -> OutputCells:
    """Returns the cells of a noise that is symmetric about 0, so that its pair is symmetric about 1/2.

    ``edges`` rise from 1/2 over 1 as far as the cells reach, perhaps to infinity; shape (edges,). ``survival`` gives
    the probability of a noise above values of 0 or more. ``log_ratios`` are bounds of ln p(x - 1) - ln p(x) at each
    edge, which between two edges must be monotone.
    """
    all_edges = np.concatenate([1 - edges[:0:-1], edges])
    all_ratios = np.concatenate([-log_ratios[:0:-1], log_ratios])
    unshifted = np.abs(np.diff(survival(np.abs(all_edges))))  # 0 is an edge: exact on both sides, and far from it
    low, high = all_ratios[:-1], all_ratios[1:]
    return OutputCells(unshifted, unshifted[::-1], np.minimum(low, high), np.maximum(low, high))


def pure_loss(epsilon: float, sample_rate: float) -> PrivacyLossDistribution:
    """Returns the loss of the worst mechanism among all whose loss never passes ``epsilon``: randomised response.

    It dominates every epsilon-differentially private mechanism (Kairouz, Oh, Viswanath 2015), sampled or not.
    """
    likely, unlikely = 1 / (1 + math.exp(-epsilon)), 1 / (1 + math.exp(epsilon))
    ratio = np.array([-epsilon, epsilon])
    return cells_loss(
        OutputCells(np.array([likely, unlikely]), np.array([unlikely, likely]), ratio, ratio), sample_rate
    )


def cells_loss(cells: OutputCells, sample_rate: float) -> PrivacyLossDistribution:
    """Returns the loss of a noise known by cells.

    Each cell's mass is split between two losses of the grid that enclose all of its losses, so that both its
    probabilities stay: of all distributions of the loss within the cell, this one has the greatest hockey-stick
    divergence at every epsilon, as divergence is convex in exp(-loss). So the result is an upper bound for the
    continuous noise itself, and its excess shrinks with the square of the cells' and the grid's widths. Where the
    cells are fine it is that of "Connect the Dots" (Doroshenko et al. 2022), which dp-accounting finds point by point.
    """
    mixed = (1 - sample_rate) * cells.unshifted + sample_rate * cells.shifted
    log_unsampled = math.log1p(-sample_rate) if sample_rate < 1 else -math.inf
    least = np.logaddexp(log_unsampled, math.log(sample_rate) + cells.least_ratio)
    greatest = np.logaddexp(log_unsampled, math.log(sample_rate) + cells.greatest_ratio)
    removed = _split(mixed, cells.unshifted, least, greatest)
    added = _split(cells.unshifted, mixed, -greatest, -least)
    return PrivacyLossDistribution(removed, added)


def epsilon_at(distribution: PrivacyLossDistribution, delta: float) -> float:
    """Returns the least epsilon of 0 or more at which a distribution's delta is at most ``delta``; perhaps infinite.

    As dp-accounting's ``get_epsilon_for_delta``, all losses at once.
    """
    return max(_epsilon_of_part(part, delta) for part in parts_of(distribution))


def mean_loss(distribution: PrivacyLossDistribution) -> float:
    """Returns the mean of the finite losses, of the direction that has more."""
    return max(float(losses_of(part) @ part._probs) for part in parts_of(distribution))


def parts_of(distribution: PrivacyLossDistribution) -> tuple[pld_pmf.DensePLDPmf, pld_pmf.DensePLDPmf]:
    """Returns the losses of a record removed and of one added, which dp-accounting shows no other way."""
    return distribution._pmf_remove.to_dense_pmf(), distribution._pmf_add.to_dense_pmf()


def losses_of(part: pld_pmf.DensePLDPmf) -> Floats:
    """Returns the finite losses that a part's masses stand for, shape (losses,)."""
    losses: Floats = LOSS_INTERVAL * (part._lower_loss + np.arange(part.size))
    return losses


def _split(upper: Floats, lower: Floats, least: Floats, greatest: Floats) -> pld_pmf.PLDPmf:
    """Returns ln(upper / lower) under upper, for cells whose losses lie between ``least`` and ``greatest``."""
    seen = (upper > 0) & (lower > 0)
    upper, lower = upper[seen], lower[seen]
    below = np.floor(least[seen] / LOSS_INTERVAL).astype(np.int64)
    above = np.maximum(np.ceil(greatest[seen] / LOSS_INTERVAL).astype(np.int64), below + 1)
    loss = np.log(upper) - np.log(lower)
    share = np.expm1(below * LOSS_INTERVAL - loss) / np.expm1((below - above) * LOSS_INTERVAL)
    to_above = upper * np.clip(share, 0.0, 1.0)
    lowest = int(below.min())
    size = int(above.max()) - lowest + 1
    masses = np.bincount(below - lowest, upper - to_above, size) + np.bincount(above - lowest, to_above, size)
    unseen = max(0.0, 1.0 - float(masses.sum()))
    return pld_pmf.DensePLDPmf(LOSS_INTERVAL, lowest, masses, unseen, pessimistic_estimate=True)


def _epsilon_of_part(part: pld_pmf.DensePLDPmf, delta: float) -> float:
    if part._infinity_mass > delta:
        return math.inf
    losses = losses_of(part)
    masses = np.maximum(part._probs, 0.0)
    # over all losses from each on: delta(epsilon) is upper - exp(epsilon) lower for an epsilon just below that loss
    upper = part._infinity_mass + np.cumsum(masses[::-1])[::-1]
    log_lower = np.logaddexp.accumulate((np.log(np.maximum(masses, 1e-300)) - losses)[::-1])[::-1]
    too_much = np.flatnonzero(upper - np.exp(np.append(-np.inf, losses[:-1]) + log_lower) > delta)
    if not too_much.size:
        return 0.0
    last = too_much[-1]
    return max(0.0, float(np.log(upper[last] - delta) - log_lower[last]))
