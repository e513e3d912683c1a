"""What the parameters of a noise law may be, said in one voice."""

from typing import Final, Literal, TypeAlias

from scaleot_core.errors import InputError

Norm: TypeAlias = Literal["L1", "L2"]
"""Which norm of a term is bounded by 1: the sum of absolute values, or the Euclidean norm."""


MOST_EPSILON: Final = 100.0
"""Beyond it nothing is hidden: a release whose loss can pass it is refused, and figures above it read as infinite."""
LEAST_NOISE_MULTIPLIER: Final = 0.1
"""The Gaussian's loss has no end; at this noise its mean is half of ``MOST_EPSILON``."""


LEAST_DELTA: Final = 1e-11
"""Below it the truncated tails (1e-15 for each composition) and float64's rounding would be most of it."""
MOST_LMO_DIRECTIONS: Final = 8
"""Beyond one direction the account is that of the greatest loss under an L1 bound, which grows with the square root of
the directions where the Gaussian's stays as it is."""
MOST_PARAMETER: Final = 1e7
"""More than any noise is worth, and far from where a float64 or a table ends; its inverse is the least but 0."""


def check_positive(law: str, **parameters: float) -> None:
    """Raises InputError for a parameter of a noise law that is not a number from 1e-7 to 1e7."""
    for name, value in parameters.items():
        if not 1 / MOST_PARAMETER <= value <= MOST_PARAMETER:
            raise InputError(
                f"noise {law}, {name}: expected a number above 0, from {1 / MOST_PARAMETER:g} to {MOST_PARAMETER:g}, "
                f"got {value}"
            )


def check_not_negative(law: str, **parameters: float) -> None:
    """Raises InputError for a parameter of a noise law that is neither 0 nor a number from 1e-7 to 1e7."""
    check_positive(law, **{name: value for name, value in parameters.items() if value != 0})


def check_noise_multiplier(law: str, noise_multiplier: float) -> None:
    """Raises InputError for a Gaussian's noise that hides nothing, or is no number."""
    if not LEAST_NOISE_MULTIPLIER <= noise_multiplier <= MOST_PARAMETER:
        raise InputError(
            f"noise {law}, noise_multiplier: expected a number from {LEAST_NOISE_MULTIPLIER:g} (less noise hides "
            f"nothing) to {MOST_PARAMETER:g}, got {noise_multiplier}"
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
    if not (1 <= dimension <= MOST_PARAMETER and float(dimension).is_integer()):
        raise InputError(
            f"noise {law}, dimension: expected a whole number of 1 or more, up to {MOST_PARAMETER:g}, got {dimension}"
        )
