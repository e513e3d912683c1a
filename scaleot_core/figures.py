"""Bounds as people read them: rounded to the side on which they still hold."""

from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from typing import Final

MOST_ROUNDS: Final = 1_000_000
"""Where a search for the rounds that fit a budget ends: the answer then means this many or more."""


def no_less(value: float, *, digits: int = 4) -> str:
    """Returns a number to so many significant digits, rounded up: an upper bound that still is one."""
    return f"{_rounded(value, digits, ROUND_CEILING):.{digits}g}"


def no_more(value: float, *, digits: int = 4) -> str:
    """Returns a number to so many significant digits, rounded down: a lower bound that still is one."""
    return f"{_rounded(value, digits, ROUND_FLOOR):.{digits}g}"


def counted_rounds(rounds: int) -> str:
    """Returns a number of rounds that fit, as found by a search that ends at ``MOST_ROUNDS``."""
    return f"{rounds:,} or more" if rounds >= MOST_ROUNDS else f"{rounds:,}"


def _rounded(value: float, digits: int, rounding: str) -> float:
    return float(Context(prec=digits, rounding=rounding).create_decimal_from_float(value))
