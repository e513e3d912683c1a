"""The Gaussian noise: the one that loses least where releases are many or wide."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from scipy import special

from scaleot_core.privacy.noise_ranges import check_positive
from scaleot_core.privacy.secret_random import Floats, SecretSource


@dataclass(frozen=True)
class Gaussian:
    """A normal law for sums of any dimension whose terms have a Euclidean norm of at most 1."""

    noise_multiplier: float
    """The standard deviation; relative to the norm's bound, as everything here."""
    bound: ClassVar[Literal["L1", "L2"]] = "L2"

    def __post_init__(self) -> None:
        check_positive("gaussian", noise_multiplier=self.noise_multiplier)

    def stddev(self) -> float:
        """Returns the standard deviation of one coordinate."""
        return self.noise_multiplier

    def sample(self, source: SecretSource, count: int) -> Floats:
        """Returns ``count`` independent values."""
        return self.noise_multiplier * source.normal(count)

    def survival(self, values: Floats) -> Floats:
        """Returns the probability of a noise above each value."""
        above: Floats = special.ndtr(-values / self.noise_multiplier)
        return above
