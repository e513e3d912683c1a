"""Laplace and staircase noise: a loss that never passes a bound, which pays where releases are few and narrow."""

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

from scaleot_core.errors import InputError
from scaleot_core.privacy.noise_ranges import Norm, check_dimension, check_greatest_loss, check_positive
from scaleot_core.privacy.privacy_loss import OutputCells, cells_loss, pure_loss, symmetric_cells
from scaleot_core.privacy.secret_random import Floats, SecretSource

_CENTRAL_CELLS: Final = 4000


@dataclass(frozen=True)
class Laplace:
    """Density exp(-|x| / scale) / (2 scale), for sums whose terms have an L1 norm of at most 1."""

    scale: float
    dimension: float = 1.0
    """How many coordinates a release has."""
    norm: ClassVar[Norm] = "L1"

    def __post_init__(self) -> None:
        check_positive("laplace", scale=self.scale)
        check_dimension("laplace", self.dimension)
        check_greatest_loss("laplace", 1 / self.scale)

    def stddev(self) -> float:
        """Returns the standard deviation of one coordinate."""
        return math.sqrt(2) * self.scale

    def sample(self, source: SecretSource, count: int) -> Floats:
        """Returns ``count`` independent values, none beyond 37 times the scale (which 1e-16 would be)."""
        return self.scale * source.signs(count) * source.exponential(count)

    def survival(self, values: Floats) -> Floats:
        """Returns the probability of a noise above each value."""
        tail = 0.5 * np.exp(-np.abs(values) / self.scale)
        return np.where(values >= 0, tail, 1 - tail)

    def privacy_loss(self, sample_rate: float) -> PrivacyLossDistribution:
        """Returns the loss of one release: exact in one dimension, the bound of its greatest loss in more."""
        if self.dimension == 1:
            edges = np.append(np.linspace(0.5, 1.0, _CENTRAL_CELLS), np.inf)
            log_ratios = np.minimum(2 * edges - 1, 1.0) / self.scale
            return cells_loss(symmetric_cells(edges, self.survival, log_ratios), sample_rate)
        return pure_loss(1 / self.scale, sample_rate)


@dataclass(frozen=True)
class Staircase:
    """The staircase of Geng and Viswanath (2014), whose one release is ``epsilon``-differentially private.

    Density a exp(-k epsilon) where |x| lies from k to k + step, and a exp(-(k + 1) epsilon) from there to k + 1, with
    a = (1 - b) / (2 (step + b (1 - step))) and b = exp(-epsilon). With the right step it is the noise of least
    variance for that guarantee on one number.
    """

    epsilon: float
    step: float
    """The paper's gamma, in (0, 1)."""
    dimension: float = 1.0
    """How many coordinates a release has."""
    norm: ClassVar[Norm] = "L1"

    def __post_init__(self) -> None:
        check_positive("staircase", epsilon=self.epsilon, step=self.step)
        check_dimension("staircase", self.dimension)
        if self.step >= 1:
            raise InputError(f"noise staircase, step: expected a number between 0 and 1, got {self.step}")
        check_greatest_loss("staircase", self.dimension * self.epsilon)

    @property
    def _density(self) -> tuple[float, float]:
        """The paper's a, and b = exp(-epsilon)."""
        ratio = math.exp(-self.epsilon)
        return -math.expm1(-self.epsilon) / (2 * (self.step + ratio * (1 - self.step))), ratio

    def stddev(self) -> float:
        """Returns the standard deviation of one coordinate."""
        highest, ratio = self._density
        rest, step = -math.expm1(-self.epsilon), self.step
        # Over the stairs k the sums of b**k, k b**k and k**2 b**k, each with its share of the integral of x**2.
        sums = (1 / rest, ratio / rest**2, ratio * (1 + ratio) / rest**3)
        shares = [(step**power + ratio * (1 - step**power)) / weight for power, weight in ((3, 3), (2, 1), (1, 1))]
        return math.sqrt(2 * highest * sum(one * share for one, share in zip(sums, shares, strict=True)))

    def sample(self, source: SecretSource, count: int) -> Floats:
        """Returns ``count`` independent values (as the paper generates them)."""
        _, ratio = self._density
        stair = np.floor(source.exponential(count) / self.epsilon)
        is_first = source.uniform(count) * (self.step + (1 - self.step) * ratio) < self.step
        within = source.uniform(count)
        place = np.where(is_first, self.step * within, self.step + (1 - self.step) * within)
        drawn: Floats = source.signs(count) * (stair + place)
        return drawn

    def survival(self, values: Floats) -> Floats:
        """Returns the probability of a noise above each value."""
        highest, ratio = self._density
        stair, place = np.divmod(np.abs(values), 1.0)
        first = 0.5 - highest * place
        second = ratio * (0.5 + highest * (1 - place))
        tail = np.exp(-self.epsilon * stair) * np.where(place < self.step, first, second)
        return np.where(values >= 0, tail, 1 - tail)

    def privacy_loss(self, sample_rate: float) -> PrivacyLossDistribution:
        """Returns the loss of one release: exact in one dimension, the bound of its greatest loss in more.

        Every coordinate that moves at all may pass a step: in ``dimension`` coordinates the greatest loss is that
        many times ``epsilon``.
        """
        if self.dimension > 1:
            return pure_loss(self.dimension * self.epsilon, sample_rate)
        return cells_loss(self._cells(), sample_rate)

    def _cells(self) -> OutputCells:
        """Below 0 and above 1 the loss is ``epsilon``; between, three cells in which both densities are constant."""
        highest, ratio = self._density
        edges = np.sort([0.0, self.step, 1 - self.step, 1.0])
        middles = (edges[:-1] + edges[1:]) / 2
        unshifted = highest * np.where(middles < self.step, 1.0, ratio) * np.diff(edges)
        shifted = highest * np.where(1 - middles < self.step, 1.0, ratio) * np.diff(edges)
        unshifted = np.concatenate([[0.5], unshifted, [0.5 * ratio]])
        shifted = np.concatenate([[0.5 * ratio], shifted, [0.5]])
        empty = (unshifted == 0) & (shifted == 0)  # a step of one half has no cell in the middle
        constant = np.log(np.where(empty, 1.0, shifted) / np.where(empty, 1.0, unshifted))
        return OutputCells(unshifted, shifted, constant, constant)


def staircase_of_least_variance(epsilon: float, dimension: float = 1.0) -> Staircase:
    """Returns the staircase with the step that gives the least variance (the paper's for squared error).

    Raises:
        InputError: epsilon is not a finite number above 0.
    """
    check_positive("staircase", epsilon=epsilon)
    b = math.exp(-epsilon)
    polynomial = b * (1 - b) ** 3 * (1 + b) / 2  # (b - 2 b**2 + 2 b**4 - b**5) / 2 without its cancellation
    step = (math.cbrt(polynomial) - b * (1 - b)) / (1 - b) ** 2
    return Staircase(epsilon, step, dimension)
