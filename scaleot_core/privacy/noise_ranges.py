"""What the parameters of a noise law may be, said in one voice."""

import math

from scaleot_core.errors import InputError


def check_positive(law: str, **parameters: float) -> None:
    """Raises InputError for a parameter of a noise law that is not a finite number above 0."""
    for name, value in parameters.items():
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"noise {law}, {name}: expected a finite number above 0, got {value}")


def check_dimension(law: str, dimension: float) -> None:
    """Raises InputError where a number of coordinates is not a whole number of 1 or more."""
    if not (dimension >= 1 and float(dimension).is_integer()):
        raise InputError(f"noise {law}, dimension: expected a whole number of 1 or more, got {dimension}")
