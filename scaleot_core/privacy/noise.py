"""Noise for a sum of bounded terms: one row for each law, all for terms bounded by 1.

Who adds noise to terms bounded by C multiplies the noise by C. ``bound`` says what is bounded: the Euclidean norm of a
term (L2), or the sum of its coordinates' absolute values (L1). Every coordinate gets its own independent noise.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Final, Literal, Protocol

from scaleot_core.errors import InputError
from scaleot_core.privacy.gaussian import Gaussian
from scaleot_core.privacy.secret_random import Floats, SecretSource


class ScalarNoise(Protocol):
    """The law of the noise of one coordinate; symmetric about zero."""

    @property
    def bound(self) -> Literal["L1", "L2"]:
        """Which norm of a term must be at most 1."""
        ...

    def stddev(self) -> float:
        """Returns the standard deviation of one coordinate's noise; infinite where the law has none."""
        ...

    def sample(self, source: SecretSource, count: int) -> Floats:
        """Returns the noise of ``count`` coordinates, shape (count,), independent and finite."""
        ...

    def survival(self, values: Floats) -> Floats:
        """Returns the probability of a noise above each value."""
        ...


NOISES: Final[Mapping[str, type[ScalarNoise]]] = {
    "gaussian": Gaussian,
}
"""A noise's name in events, run files and reports, and its law."""


def noise_from(name: str, parameters: Mapping[str, float]) -> ScalarNoise:
    """Returns the noise of a name with exactly its law's parameters.

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
