"""Noise for a sum of bounded terms: one row for each law, all for terms bounded by 1.

Who adds noise to terms bounded by C multiplies the noise by C. ``norm`` says what is bounded: the Euclidean norm of a
term (L2), or the sum of its coordinates' absolute values (L1); the L1 norm of k coordinates is at most sqrt(k) times
the Euclidean one. Every coordinate of a release gets its own independent noise.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import ClassVar, Final, Protocol, runtime_checkable

from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

from scaleot_core.errors import InputError
from scaleot_core.privacy.discrete_gaussian import DiscreteGaussian
from scaleot_core.privacy.gaussian import Gaussian
from scaleot_core.privacy.laplace import Laplace, Staircase
from scaleot_core.privacy.lmo import Lmo
from scaleot_core.privacy.noise_ranges import Norm
from scaleot_core.privacy.secret_random import Floats, SecretSource


@runtime_checkable
class ScalarNoise(Protocol):
    """The law of the noise of one coordinate; symmetric about zero."""

    norm: ClassVar[Norm]
    """Which norm of a term must be at most 1."""

    def stddev(self) -> float:
        """Returns the standard deviation of one coordinate's noise; infinite where the law has none."""
        ...

    def sample(self, source: SecretSource, count: int) -> Floats:
        """Returns the noise of ``count`` coordinates, shape (count,), independent and finite."""
        ...

    def survival(self, values: Floats) -> Floats:
        """Returns the probability of a noise above each value."""
        ...

    def privacy_loss(self, sample_rate: float) -> PrivacyLossDistribution:
        """Returns an upper bound on the loss of one release of a Poisson sample, on the accountant's grid."""
        ...


NOISES: Final[Mapping[str, type[ScalarNoise]]] = {
    "gaussian": Gaussian,
    "discrete-gaussian": DiscreteGaussian,
    "laplace": Laplace,
    "staircase": Staircase,
    "lmo": Lmo,
}
"""A noise's name in events, run files and reports, and its law."""


def noise_from(name: str, parameters: Mapping[str, float]) -> ScalarNoise:
    """Returns the noise of a name with exactly its law's parameters, all of them.

    Raises:
        InputError: there is no such noise, a parameter is missing or unknown, or its value is out of range.
    """
    if name not in NOISES:
        raise InputError(f"noise: expected one of {', '.join(NOISES)}; got {name!r}")
    law = NOISES[name]
    expected = {field.name for field in fields(law)}  # type: ignore[arg-type] # every row is a dataclass
    if parameters.keys() != expected:
        raise InputError(f"noise {name}: expected the parameters {sorted(expected)}, got {sorted(parameters)}")
    return law(**parameters)


def check_noise_suits(name: str, *, dimension: int, norm: Norm) -> None:
    """Checks that a noise may hide a release of ``dimension`` coordinates whose terms are bounded in ``norm``.

    Raises:
        InputError: the noise needs an L1 bound and the release has many coordinates and only a Euclidean one.
    """
    if name not in NOISES:
        raise InputError(f"noise: expected one of {', '.join(NOISES)}; got {name!r}")
    if dimension > 1 and norm == "L2" and NOISES[name].norm == "L1":
        raise InputError(
            f"noise {name} on {dimension} coordinates clipped in the Euclidean norm is refused: no such noise comes "
            f"within sqrt(2) of the Gaussian's standard deviation there, and its loss grows with the L1 norm, up to "
            f"{dimension**0.5:.3g} times the Euclidean one. Choose gaussian or discrete-gaussian, release one number, "
            f"or clip in the L1 norm and say so"
        )
