"""Finite numbers: what a model gives on public text is checked before anything is derived from it."""

import math
from collections.abc import Iterable

from scaleot_core.errors import ModelError


def check_finite(values: Iterable[float], what: str, where: str, *, first_cure: str = "") -> None:
    """Raises ``ModelError`` with the first value that is not finite, what and where it is, and how to cure it."""
    for value in values:
        if not math.isfinite(value):
            raise ModelError(
                f"{what} is {value} {where}, expected a finite number: take {first_cure}model.dtype float32 or "
                "bfloat16 instead of float16"
            )
