"""From a noise to its privacy-loss distribution: what the accountant composes. Every one is an upper bound.

The pair of neighbouring outputs is (noise, 1 + noise) with densities p(x) and p(x - 1); under Poisson sampling with
rate q the second becomes the mixture (1 - q) p(x) + q p(x - 1). Both directions, a record removed and a record added,
are kept apart, composed apart, and the worse one is reported (Zhu, Dong, Wang 2022, "Optimal accounting of differential
privacy via characteristic function").
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from dp_accounting.pld import pld_pmf
from dp_accounting.pld.privacy_loss_distribution import (
    PrivacyLossDistribution,
    from_gaussian_mechanism,
    from_laplace_mechanism,
)

from scaleot_core.privacy.secret_random import Floats

LOSS_INTERVAL: Final = 1e-4
"""Losses are whole multiples of it. One for all, since only distributions on one grid compose."""


@dataclass(frozen=True)
class OutputCells:
    """A partition of the real line: how likely each cell is for a sum of 0 and of 1, and how the two densities relate.

    All arrays have shape (cells,). Within a cell the ratio p(x - 1) / p(x) lies between ``least_ratio`` and
    ``greatest_ratio``; where it is constant the three ratios are one.
    """

    unshifted: Floats
    """The probability of the cell under p(x)."""
    shifted: Floats
    """Under p(x - 1)."""
    least_ratio: Floats
    greatest_ratio: Floats


def gaussian_loss(noise_multiplier: float, sample_rate: float) -> PrivacyLossDistribution:
    """Returns the loss of Gaussian noise on a sum of any dimension whose terms have Euclidean norm 1.

    dp-accounting's "Connect the Dots" (Doroshenko et al. 2022). The dimension does not matter: noise and norm look the
    same from every direction.
    """
    return from_gaussian_mechanism(
        noise_multiplier,
        value_discretization_interval=LOSS_INTERVAL,
        sampling_prob=sample_rate,
        use_connect_dots=True,
    )


def laplace_loss(scale: float, sample_rate: float) -> PrivacyLossDistribution:
    """Returns the loss of Laplace noise on one number; dp-accounting's "Connect the Dots"."""
    return from_laplace_mechanism(
        scale,
        value_discretization_interval=LOSS_INTERVAL,
        sampling_prob=sample_rate,
        use_connect_dots=True,
    )


def pure_loss(epsilon: float, sample_rate: float) -> PrivacyLossDistribution:
    """Returns the loss of the worst mechanism among all whose loss never passes ``epsilon``: randomised response.

    It dominates every epsilon-differentially private mechanism (Kairouz, Oh, Viswanath 2015), sampled or not.
    """
    likely, unlikely = 1 / (1 + math.exp(-epsilon)), 1 / (1 + math.exp(epsilon))
    ratio = np.exp(np.array([-epsilon, epsilon]))
    return cells_loss(
        OutputCells(np.array([likely, unlikely]), np.array([unlikely, likely]), ratio, ratio), sample_rate
    )


def cells_loss(cells: OutputCells, sample_rate: float) -> PrivacyLossDistribution:
    """Returns the loss of a noise known by cells.

    Each cell's mass is split between two losses of the grid that enclose all of its losses, so that both its
    probabilities stay: of all distributions of the loss within the cell, this one has the greatest hockey-stick
    divergence at every epsilon, as divergence is convex in exp(-loss). So the result is an upper bound for the
    continuous noise itself, and its excess shrinks with the square of the cells' and the grid's widths.
    """
    mixed = (1 - sample_rate) * cells.unshifted + sample_rate * cells.shifted
    # ln(1 - q + q r), exact also where q (r - 1) is tiny
    least = np.log1p(sample_rate * (cells.least_ratio - 1))
    greatest = np.log1p(sample_rate * (cells.greatest_ratio - 1))
    removed = _split(mixed, cells.unshifted, least, greatest)
    added = _split(cells.unshifted, mixed, -greatest, -least)
    return PrivacyLossDistribution(removed, added)


def mean_loss(distribution: PrivacyLossDistribution) -> float:
    """Returns the mean of the finite losses, of the direction that has more."""
    means = []
    for part in (distribution._pmf_remove, distribution._pmf_add):  # dp-accounting shows them no other way
        dense = part.to_dense_pmf()
        losses = LOSS_INTERVAL * (dense._lower_loss + np.arange(dense.size))
        means.append(float(losses @ dense._probs))
    return max(means)


def _split(upper: Floats, lower: Floats, least: Floats, greatest: Floats) -> pld_pmf.PLDPmf:
    """Returns ln(upper / lower) under upper, for cells whose losses lie between ``least`` and ``greatest``."""
    seen = (upper > 0) & (
        lower > 0
    )  # a cell too unlikely for float64 in one is too unlikely in both: the ratio is finite
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
