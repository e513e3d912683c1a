"""Bounds that are printed still hold."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleot_core.figures import MOST_ROUNDS, counted_rounds, no_less, no_more

numbers = st.just(0.0) | st.floats(min_value=1e-9, max_value=1e6)


@given(value=numbers, digits=st.integers(1, 9))
def test_what_is_printed_is_on_the_side_where_the_bound_holds_and_within_one_unit_of_the_last_digit(
    value: float, digits: int
) -> None:
    upper, lower = Fraction(no_less(value, digits=digits)), Fraction(no_more(value, digits=digits))
    assert lower <= Fraction(value) <= upper
    assert upper - lower <= (10 ** (1 - digits)) * Fraction(value) * 2


@pytest.mark.parametrize(
    ("value", "upper", "lower"), [(7.99996, "8", "7.999"), (8.0, "8", "8"), (1.23451, "1.235", "1.234")]
)
def test_some_by_hand(value: float, upper: str, lower: str) -> None:
    assert (no_less(value), no_more(value)) == (upper, lower)


def test_infinity_stays_what_it_is() -> None:
    assert no_less(math.inf) == no_more(math.inf) == "inf"


def test_a_search_that_came_to_its_end_says_or_more() -> None:
    assert (counted_rounds(MOST_ROUNDS - 1), counted_rounds(MOST_ROUNDS)) == ("999,999", "1,000,000 or more")
