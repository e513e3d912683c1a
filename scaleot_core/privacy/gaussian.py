"""The Gaussian noise: the one that loses least where releases are many or wide."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final

import numpy as np
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from scipy import special

from scaleot_core.privacy.noise_ranges import Norm, check_noise_multiplier
from scaleot_core.privacy.privacy_loss import cells_loss, symmetric_cells
from scaleot_core.privacy.secret_random import Floats, SecretSource

_CELLS: Final = 10_000
_REACH: Final = 9.0
"""Standard deviations that are told apart; 1e-19 lie beyond and count as lost."""


@dataclass(frozen=True)
class Gaussian:
    """A normal law for sums of any dimension whose terms have a Euclidean norm of at most 1."""

    noise_multiplier: float
    """The standard deviation; relative to the norm's bound, as everything here."""
    norm: ClassVar[Norm] = "L2"

    def __post_init__(self) -> None:
        check_noise_multiplier("gaussian", self.noise_multiplier)

    def stddev(self) -> float:
        """Returns the standard deviation of one coordinate."""
        return self.noise_multiplier

    def sample(self, source: SecretSource, count: int) -> Floats:
        """Returns ``count`` independent values."""
        return self.noise_multiplier * source.normal(count)

    def survival(self, values: Floats) -> Floats:
        """Returns the probability of a noise above each value."""
        return _survival(values, self.noise_multiplier)

    def privacy_loss(self, sample_rate: float) -> PrivacyLossDistribution:
        """Returns the loss of one release, of any dimension: norm and noise look the same from every direction."""
        return gaussian_loss(self.noise_multiplier, sample_rate)


def gaussian_loss(stddev: float, sample_rate: float) -> PrivacyLossDistribution:
    """Returns the loss of a term of 1 under normal noise of any standard deviation."""
    reach = 1 + _REACH * stddev
    edges = np.concatenate([np.linspace(0.5, 1, _CELLS // 4), np.linspace(1, reach, _CELLS)[1:]])
    log_ratios = (2 * edges - 1) / (2 * stddev**2)
    return cells_loss(symmetric_cells(edges, partial(_survival, stddev=stddev), log_ratios), sample_rate)


def _survival(values: Floats, stddev: float) -> Floats:
    above: Floats = special.ndtr(-values / stddev)
    return above
