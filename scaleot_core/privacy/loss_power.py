"""The privacy loss of many equal releases: one distribution, convolved with itself.

As dp-accounting's ``self_compose``, in a fifth of its time: real transforms, and only the few orders of the Chernoff
bound that can matter.
"""

import math
from typing import Final

import numpy as np
from dp_accounting.pld.pld_pmf import DensePLDPmf
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from scipy import fft

from scaleot_core.privacy.privacy_loss import LOSS_INTERVAL, losses_of, parts_of
from scaleot_core.privacy.secret_random import Floats

TAIL_MASS: Final = 1e-15
"""What a power may leave out of its window; it counts as an infinite loss."""
_NORMAL_ORDERS: Final = np.array([0.25, 0.5, 0.75, 1.0, 1.5])
"""Relative to the order that would be best for a normal loss; any order gives a bound."""
_SKEWED_ORDERS: Final = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
"""For rare great losses, as small sample rates have: without those below 1 the window of some takes gigabytes."""


def loss_power(distribution: PrivacyLossDistribution, count: int) -> PrivacyLossDistribution:
    """Returns the loss of ``count`` releases that each have this distribution; ``count`` is 1 or more."""
    if count == 1:
        return distribution
    removed, added = (_power(part, count) for part in parts_of(distribution))
    return PrivacyLossDistribution(removed, added)


def _power(part: DensePLDPmf, count: int) -> DensePLDPmf:
    low, high = _window(part, count)
    size = fft.next_fast_len(max(high - low + 1, part.size), real=True)
    # the transform wraps around: the window is cut from one period, and what lies outside of it falls somewhere within
    powered = fft.irfft(fft.rfft(part._probs, size) ** count, size)
    masses = np.roll(powered, count * part._lower_loss - low)[: high - low + 1]
    infinite = TAIL_MASS - math.expm1(count * math.log1p(-part._infinity_mass))
    return DensePLDPmf(LOSS_INTERVAL, low, np.maximum(masses, 0.0), infinite, pessimistic_estimate=True)


def _window(part: DensePLDPmf, count: int) -> tuple[int, int]:
    """Returns the least and the greatest multiple of the interval between which all but ``TAIL_MASS`` lies."""
    losses = losses_of(part)
    masses = np.maximum(part._probs, 0.0)
    mean = float(losses @ masses)
    spread = math.sqrt(float((losses - mean) ** 2 @ masses)) + LOSS_INTERVAL
    bound = -math.log(TAIL_MASS / 2)
    orders = np.concatenate([_NORMAL_ORDERS * math.sqrt(2 * bound / count) / spread, _SKEWED_ORDERS])
    high = min((count * _cumulant(losses, masses, order) + bound) / order for order in orders)
    low = max(-(count * _cumulant(losses, masses, -order) + bound) / order for order in orders)
    least, greatest = count * part._lower_loss, count * (part._lower_loss + part.size - 1)
    return max(math.floor(low / LOSS_INTERVAL), least), min(math.ceil(high / LOSS_INTERVAL), greatest)


def _cumulant(losses: Floats, masses: Floats, order: float) -> float:
    """Returns ln E exp(order x loss)."""
    exponents = order * losses
    greatest = float(exponents.max())
    return greatest + math.log(float(np.exp(exponents - greatest) @ masses))
