"""The two-fold randomised Laplace noise of LMO-DP: Laplace noise whose inverse scale is itself random.

A Laplace value with density u exp(-u |x|) / 2, where u = a1 G + a3 E + a4 U sums a gamma, an exponential and a uniform
variable (Yang et al. 2024, "LMO-DP", arXiv 2405.18776; the mechanism is R2DP's of Mohammady et al. 2020). All follows
in closed form from the moments M(t) = E exp(-u t), t >= 0.

**How this differs from the paper, whose published epsilons do not hold.** The paper's accountant evaluates moments
where they are infinite, takes the exponential's rate for its scale, counts noise on every coordinate of a gradient as
noise on one number, and composes a Gaussian in its place. Here ``exponential_rate`` is a rate everywhere, a release is
one number (or has an L1 bound, at its true price), and losses compose by their own distribution. On one number no law
of this family has a smaller variance than plain Laplace noise at the same epsilon, and on a vector clipped in the
Euclidean norm none comes within sqrt(2) of the Gaussian's standard deviation: its Fisher information times its
variance is at least 2, a Gaussian's is 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from scipy import special

from scaleot_core.errors import InputError
from scaleot_core.privacy.noise_ranges import (
    Norm,
    check_dimension,
    check_greatest_loss,
    check_not_negative,
    check_positive,
)
from scaleot_core.privacy.privacy_loss import OutputCells, cells_loss, pure_loss, symmetric_cells
from scaleot_core.privacy.secret_random import Floats, SecretSource

LARGEST_NOISE: Final = 2.0**100
"""What a sample is clamped to, for tails without end. A float64 sum below 2**47 is lost in so great a noise, so that
clamping the noise is clamping the release, which happens after the noise and costs no privacy."""

_CENTRAL_CELLS: Final = 1000
_TAIL_CELLS: Final = 4000
_TAIL_MASS: Final = 1e-18
_LOG_STEP: Final = 0.02
_FARTHEST: Final = 1e300
_NARROW: Final = 1e-2
"""Below it a series is more exact than a difference of great numbers."""


@dataclass(frozen=True)
class Lmo:
    """``scale`` times a Laplace value of random inverse scale u, for sums whose terms have an L1 norm of at most 1.

    u = ``gamma_weight`` Gamma(``gamma_shape``, ``gamma_scale``) + ``exponential_weight`` Exp(``exponential_rate``) +
    ``uniform_weight`` Unif(``uniform_low``, ``uniform_high``). A weight of zero leaves its variable out. Every
    coordinate of every release has its own fresh u.
    """

    gamma_weight: float
    """The paper's a1."""
    gamma_shape: float
    """Its k."""
    gamma_scale: float
    """Its theta."""
    exponential_weight: float
    """Its a3."""
    exponential_rate: float
    """Its lambda, as the accountant of the paper has it: the exponential's mean is one over it."""
    uniform_weight: float
    """Its a4."""
    uniform_low: float
    """Its a."""
    uniform_high: float
    """Its b."""
    scale: float = 1.0
    """Not in the paper: what calibration turns."""
    dimension: float = 1.0
    """How many coordinates a release has."""
    norm: ClassVar[Norm] = "L1"

    def __post_init__(self) -> None:
        check_positive(
            "lmo",
            gamma_shape=self.gamma_shape,
            gamma_scale=self.gamma_scale,
            exponential_rate=self.exponential_rate,
            uniform_high=self.uniform_high,
            scale=self.scale,
        )
        weights = (self.gamma_weight, self.exponential_weight, self.uniform_weight)
        check_not_negative(
            "lmo",
            gamma_weight=weights[0],
            exponential_weight=weights[1],
            uniform_weight=weights[2],
            uniform_low=self.uniform_low,
        )
        check_dimension("lmo", self.dimension)
        if self.uniform_low >= self.uniform_high:
            raise InputError(f"noise lmo: expected uniform_low below uniform_high, got {self.uniform_low} and more")
        if not any(weights):
            raise InputError("noise lmo: expected at least one weight above 0, got none")
        check_greatest_loss("lmo", self.pure_epsilon())

    def stddev(self) -> float:
        """Returns the standard deviation of one coordinate, the root of 2 E[1 / u**2]; infinite where it has none."""
        if self._fall <= 2:
            return math.inf
        return self.scale * math.sqrt(2 * self._integral(lambda t: t * self._moment(t)))

    def mean_magnitude(self) -> float:
        """Returns the mean of a noise's absolute value, E[1 / u]; infinite where it has none."""
        return self.scale * self._integral(self._moment) if self._fall > 1 else math.inf

    def fisher_information(self) -> float:
        """Returns the Fisher information about a shift: what an observer of many coordinates learns by."""
        information = self._integral(lambda t: self._moment(t) * self._second(t) ** 2 / self._first(t))
        return information / self.scale**2

    def pure_epsilon(self) -> float:
        """Returns the greatest loss of one release: ln(E u / E[u exp(-u)]) for one number, finite for every law.

        In more dimensions it is that of a term spread evenly: d ln(E u / E[u exp(-u / d)]), as the greatest loss of a
        coordinate is concave in its move. (A bound convex in it, as Renyi's at low orders, cannot hold at high ones.)
        """
        move = 1 / (self.scale * self.dimension)
        start, end = self._log_density(np.array([0.0, move]))
        return float(self.dimension * (start - end))

    def sample(self, source: SecretSource, count: int) -> Floats:
        """Returns ``count`` independent values, clamped to ``LARGEST_NOISE``."""
        gamma = self.gamma_scale * special.gammaincinv(self.gamma_shape, source.uniform(count))
        exponential = source.exponential(count) / self.exponential_rate
        uniform = self.uniform_low + (self.uniform_high - self.uniform_low) * source.uniform(count)
        rate = self.gamma_weight * gamma + self.exponential_weight * exponential + self.uniform_weight * uniform
        with np.errstate(divide="ignore", over="ignore"):
            magnitude = self.scale * source.exponential(count) / rate
        drawn: Floats = source.signs(count) * np.minimum(magnitude, LARGEST_NOISE)
        return drawn

    def survival(self, values: Floats) -> Floats:
        """Returns the probability of a noise above each value: M / 2."""
        finite = np.minimum(np.abs(values) / self.scale, _FARTHEST)
        tail = 0.5 * np.where(np.isinf(values), 0.0, self._moment(finite))
        return np.where(values >= 0, tail, 1 - tail)

    def density(self, values: Floats) -> Floats:
        """Returns the density at each value: E[u exp(-u |x|)] / 2."""
        density: Floats = np.exp(self._log_density(np.abs(values) / self.scale)) / (2 * self.scale)
        return density

    def privacy_loss(self, sample_rate: float) -> PrivacyLossDistribution:
        """Returns the loss of one release: its own for one number, the bound of its greatest loss for more."""
        if self.dimension > 1:
            return pure_loss(self.pure_epsilon(), sample_rate)
        return cells_loss(self._cells(), sample_rate)

    @property
    def _fall(self) -> float:
        """The power of 1 / t with which M(t) falls; infinite where u stays away from zero."""
        if self.uniform_weight * self.uniform_low > 0:
            return math.inf
        return self.gamma_shape * (self.gamma_weight > 0) + (self.exponential_weight > 0) + (self.uniform_weight > 0)

    def _moment(self, t: Floats) -> Floats:
        """M(t) = E exp(-u t)."""
        moment: Floats = np.exp(self._log_moment(t))
        return moment

    def _log_moment(self, t: Floats) -> Floats:
        gamma = -self.gamma_shape * np.log1p(self.gamma_weight * self.gamma_scale * t)
        exponential = -np.log1p(self.exponential_weight / self.exponential_rate * t)
        lowest = -self.uniform_weight * self.uniform_low * t
        width = self.uniform_weight * (self.uniform_high - self.uniform_low) * t
        logarithm: Floats = gamma + exponential + lowest + np.log(special.exprel(-width))
        return logarithm

    def _log_density(self, t: Floats) -> Floats:
        """ln E[u exp(-u t)]: the density, without scale and half; convex in t, as the logarithm of a mixture is."""
        logarithm: Floats = self._log_moment(t) + np.log(self._first(t))
        return logarithm

    def _first(self, t: Floats) -> Floats:
        """E[u exp(-u t)] / M(t): the mean of u under the law tilted by exp(-u t), part by part."""
        gamma = self.gamma_weight * self.gamma_scale
        exponential = self.exponential_weight / self.exponential_rate
        width = self.uniform_weight * (self.uniform_high - self.uniform_low)
        lowest = self.uniform_weight * self.uniform_low
        mean: Floats = (
            self.gamma_shape * gamma / (1 + gamma * t)
            + exponential / (1 + exponential * t)
            + lowest
            + width * _tilted_uniform_mean(width * t)
        )
        return mean

    def _second(self, t: Floats) -> Floats:
        """E[u**2 exp(-u t)] / M(t): the tilted law's variance and its squared mean."""
        gamma = self.gamma_weight * self.gamma_scale
        exponential = self.exponential_weight / self.exponential_rate
        width = self.uniform_weight * (self.uniform_high - self.uniform_low)
        variance = (
            self.gamma_shape * (gamma / (1 + gamma * t)) ** 2
            + (exponential / (1 + exponential * t)) ** 2
            + width**2 * _tilted_uniform_variance(width * t)
        )
        second: Floats = variance + self._first(t) ** 2
        return second

    def _integral(self, function: Callable[[Floats], Floats]) -> float:
        """Integrates a function of t over t > 0 by the trapezoidal rule in ln t, as it may fall as slowly as a power.

        On that scale all integrals here fall off exponentially on both sides, where the rule converges exponentially.
        """
        centre = -math.log(float(self._first(np.zeros(1))[0]))  # t of order 1 / E u
        logarithms = centre + np.arange(-40.0, 300.0, _LOG_STEP)
        t = np.exp(logarithms)
        return float(np.sum(function(t) * t)) * _LOG_STEP

    def _cells(self) -> OutputCells:
        """Cells in which the loss is monotone: it rises to the cusp at 1 and falls again beyond it.

        Beyond 1 the logarithm of p(x - 1) / p(x) falls, never below 0, since ln p is convex on either side of zero.
        """
        reach = 1.0
        while self.survival(np.array([reach]))[0] > _TAIL_MASS and reach < 1 / _TAIL_MASS:
            reach *= 2
        beyond = 1 + np.geomspace(1e-6 * reach, reach, _TAIL_CELLS)
        edges = np.concatenate([np.linspace(0.5, 1.0, _CENTRAL_CELLS), beyond])
        ratios = self._log_density(np.abs(edges - 1) / self.scale) - self._log_density(edges / self.scale)
        return symmetric_cells(np.append(edges, np.inf), self.survival, np.append(ratios, 0.0))


def _tilted_uniform_mean(width: Floats) -> Floats:
    """The mean of a variable with density proportional to exp(-width x) on (0, 1)."""
    narrow, wide = np.minimum(width, _NARROW), np.maximum(width, _NARROW)
    return np.where(width < _NARROW, 0.5 - narrow / 12 + narrow**3 / 720, 1 / wide + 1 / np.expm1(-wide) + 1)


def _tilted_uniform_variance(width: Floats) -> Floats:
    """Its variance."""
    narrow, wide = np.minimum(width, _NARROW), np.maximum(width, _NARROW)
    beyond = np.exp(-wide) / np.expm1(-wide) ** 2
    return np.where(width < _NARROW, 1 / 12 - narrow**2 / 240, 1 / wide**2 - beyond)
