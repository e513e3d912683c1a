"""How many rounds still fit in a budget."""

from collections.abc import Callable

from scaleot_core.figures import MOST_ROUNDS


def most_that_fit(fits: Callable[[int], bool]) -> int:
    """Returns the largest count that fits, at most ``MOST_ROUNDS``, where whatever fits has all below it fit too.

    Found by doubling and bisection, as epsilon grows with the count.
    """
    fitting, too_many = 0, 1
    while fits(too_many):
        if too_many == MOST_ROUNDS:
            return MOST_ROUNDS
        fitting, too_many = too_many, min(2 * too_many, MOST_ROUNDS)
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        fitting, too_many = (middle, too_many) if fits(middle) else (fitting, middle)
    return fitting
