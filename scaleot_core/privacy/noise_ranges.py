"""What the parameters of a noise law may be, said in one voice."""

import math
from typing import Final, Literal, TypeAlias

from scaleot_core.errors import InputError

Norm: TypeAlias = Literal["L1", "L2"]
"""Which norm of a term is bounded by 1: the sum of absolute values, or the Euclidean norm."""


MOST_EPSILON: Final = 100.0
"""Beyond it nothing is hidden: a release whose loss can pass it is refused, and figures above it read as infinite."""
LEAST_NOISE_MULTIPLIER: Final = 0.1
"""The Gaussian's loss has no end; at this noise its mean is half of ``MOST_EPSILON``."""


def check_positive(law: str, **parameters: float) -> None:
    """Raises InputError for a parameter of a noise law that is not a finite number above 0."""
    for name, value in parameters.items():
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"noise {law}, {name}: expected a finite number above 0, got {value}")


def check_not_negative(law: str, **parameters: float) -> None:
    """Raises InputError for a parameter of a noise law that is not a finite number of 0 or more."""
    for name, value in parameters.items():
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"noise {law}, {name}: expected a finite number of 0 or more, got {value}")


def check_noise_multiplier(law: str, noise_multiplier: float) -> None:
    """Raises InputError for a Gaussian's noise that hides nothing, or is no number."""
    if not (math.isfinite(noise_multiplier) and noise_multiplier >= LEAST_NOISE_MULTIPLIER):
        raise InputError(
            f"noise {law}, noise_multiplier: expected a finite number of {LEAST_NOISE_MULTIPLIER:g} or more "
            f"(less noise hides nothing), got {noise_multiplier}"
        )


def check_greatest_loss(law: str, epsilon: float) -> None:
    """Raises InputError where one release may lose more than ``MOST_EPSILON``."""
    if epsilon > MOST_EPSILON * (1 + 1e-9):
        raise InputError(
            f"noise {law}: expected a greatest loss of at most {MOST_EPSILON:g} in one release (beyond it nothing is "
            f"hidden), got {epsilon:.4g}; more noise is needed"
        )


def check_dimension(law: str, dimension: float) -> None:
    """Raises InputError where a number of coordinates is not a whole number of 1 or more."""
    if not (dimension >= 1 and float(dimension).is_integer()):
        raise InputError(f"noise {law}, dimension: expected a whole number of 1 or more, got {dimension}")
