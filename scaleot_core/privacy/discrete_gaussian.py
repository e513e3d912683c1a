"""The discrete Gaussian: Gaussian noise on a lattice, drawn with integers alone, so that it is exactly what it says.

Floating-point noise leaks through which values it can and cannot reach (Mironov 2012). Here there is none: terms are
rounded to the lattice towards zero, sums and noise are integers, and every coin is exact (Canonne, Kamath, Steinke
2020, "The discrete Gaussian for differential privacy", algorithms 1 to 3).
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Final

import numpy as np
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from numpy.typing import NDArray
from scipy import special

from scaleot_core.errors import InputError
from scaleot_core.privacy.gaussian import gaussian_loss
from scaleot_core.privacy.noise_ranges import Norm, check_noise_multiplier
from scaleot_core.privacy.secret_random import Floats, SecretSource

CELLS_PER_UNIT: Final = 2.0**16
"""The default lattice: 65,536 steps to the bound of a term, fine enough that rounding costs nothing."""
ROUNDING_CELLS: Final = 2.0
"""See ``DiscreteGaussian.privacy_loss``."""
_LEAST_STDDEV_CELLS: Final = 16.0
_MOST_STDDEV_CELLS: Final = 2.0**48
"""So that noise fits in 64 bits with room for the sum."""


@dataclass(frozen=True)
class DiscreteGaussian:
    """A law on the multiples of 1 / ``cells_per_unit``, with mass proportional to exp(-x**2 / (2 noise_multiplier**2)).

    For sums of any dimension whose terms, *rounded to the lattice*, have a Euclidean norm of at most 1. Rounding every
    coordinate towards zero keeps the norm's bound.
    """

    noise_multiplier: float
    """The standard deviation, to all digits of a float64 (the lattice is that fine)."""
    cells_per_unit: float = CELLS_PER_UNIT
    """A power of two, so that float64 holds lattice points exactly."""
    norm: ClassVar[Norm] = "L2"

    def __post_init__(self) -> None:
        check_noise_multiplier("discrete-gaussian", self.noise_multiplier)
        if math.frexp(self.cells_per_unit)[0] != 0.5 or not 1 <= self.cells_per_unit <= _MOST_STDDEV_CELLS:
            raise InputError(
                f"noise discrete-gaussian, cells_per_unit: expected 1, 2, 4, 8, ...; got {self.cells_per_unit}"
            )
        if not _LEAST_STDDEV_CELLS <= self.noise_multiplier * self.cells_per_unit <= _MOST_STDDEV_CELLS:
            raise InputError(
                f"noise discrete-gaussian: expected a standard deviation of {_LEAST_STDDEV_CELLS:g} to 2**48 cells, "
                f"got {self.noise_multiplier * self.cells_per_unit:g}; choose cells_per_unit accordingly"
            )

    def stddev(self) -> float:
        """Returns the standard deviation of one coordinate."""
        return self.noise_multiplier

    def sample(self, source: SecretSource, count: int) -> Floats:
        """Returns ``count`` independent values: exact multiples of 1 / ``cells_per_unit``, exactly distributed."""
        return self.sample_cells(source, count) / self.cells_per_unit

    def sample_cells(self, source: SecretSource, count: int) -> NDArray[np.int64]:
        """Returns ``count`` independent values as numbers of cells."""
        variance = (Fraction(self.noise_multiplier) * int(self.cells_per_unit)) ** 2
        return np.array([sample_discrete_gaussian(source, variance) for _ in range(count)], dtype=np.int64)

    def survival(self, values: Floats) -> Floats:
        """Returns the probability of a noise above each value, within 1e-7 (Euler and Maclaurin, two terms)."""
        stddev = self.noise_multiplier * self.cells_per_unit
        edge = (np.floor(values * self.cells_per_unit) + 0.5) / stddev
        correction = edge * np.exp(-0.5 * edge**2) / (24 * stddev**2 * math.sqrt(2 * math.pi))
        above: Floats = special.ndtr(-edge) - correction
        return above

    def privacy_loss(self, sample_rate: float) -> PrivacyLossDistribution:
        """Returns a bound on the loss of one release, in any dimension: that of a slightly smaller Gaussian.

        Noise of a Gaussian with variance s**2 - r**2, then rounding each coordinate y to the lattice at random, with
        mass proportional to exp(-(x - y)**2 / (2 r**2)), is the discrete Gaussian with variance s**2 (Peikert 2010,
        "An efficient and parallel Gaussian sampler for lattices", theorem 3.1), but for a factor within 4 exp(-2 pi**2
        r**2) of 1. Rounding happens after the noise, so it cannot cost privacy. With r of two cells the factor is
        within 1e-33 of 1, which no float64 can tell from 1, and the loss of noise is (r / s)**2 / 2 of it.
        """
        lost = ROUNDING_CELLS / (self.noise_multiplier * self.cells_per_unit)
        return gaussian_loss(self.noise_multiplier * math.sqrt(1 - lost**2), sample_rate)


def sample_discrete_gaussian(source: SecretSource, variance: Fraction) -> int:
    """Returns an integer with probability proportional to exp(-x**2 / (2 ``variance``)); algorithm 3 of the paper."""
    scale = math.isqrt(math.floor(variance)) + 1
    while True:
        drawn = _sample_discrete_laplace(source, scale)
        distance = abs(drawn) - variance / scale
        if _exponential_coin(source, distance**2 / (2 * variance)):
            return drawn


def _sample_discrete_laplace(source: SecretSource, scale: int) -> int:
    """Returns an integer with probability proportional to exp(-|x| / ``scale``); algorithm 2."""
    while True:
        low = source.integer_below(scale)
        if not _small_exponential_coin(source, low, scale):
            continue
        high = 0
        while _small_exponential_coin(source, 1, 1):
            high += 1
        magnitude = low + scale * high
        is_negative = source.coin(1, 2)
        if magnitude or not is_negative:  # zero has one sign
            return -magnitude if is_negative else magnitude


def _exponential_coin(source: SecretSource, exponent: Fraction) -> bool:
    """Returns true with probability exp(-``exponent``), which is 0 or more; algorithm 1."""
    whole, rest = divmod(exponent, 1)
    if not all(_small_exponential_coin(source, 1, 1) for _ in range(whole)):
        return False
    return _small_exponential_coin(source, *rest.as_integer_ratio())


def _small_exponential_coin(source: SecretSource, numerator: int, denominator: int) -> bool:
    """The same for an exponent ``numerator`` / ``denominator`` of 0 to 1."""
    tries = 1
    while source.coin(numerator, denominator * tries):
        tries += 1
    return tries % 2 == 1
