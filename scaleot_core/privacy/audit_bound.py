"""How large epsilon must be for so many right guesses: the statistics of the one-run audit.

Steinke, Nasr, Jagielski (2023), "Privacy auditing with one (1) training run": each of m canaries is in the data set by
its own fair coin, and who sees the release guesses some of the coins. An (epsilon, 0)-private mechanism lets each guess
be right with a chance of at most e^epsilon / (1 + e^epsilon), as if the coins were told by randomised response.
"""

from typing import Final

import numpy as np
from scipy import special, stats

from scaleot_core.errors import InputError

_MOST_EPSILON: Final = 30.0
"""At which a guess is right but once in 1e13."""
_HALVINGS: Final = 50


def chance_of_guesses(epsilon: float, delta: float, *, canaries: int, guesses: int, right: int) -> float:
    """Returns a bound on the probability that ``right`` or more of ``guesses`` guesses are right.

    Theorem 3.1 of the paper: f(v) + 2 m delta max_i (f(v - i) - f(v)) / i over i = 1, ..., m, where f(v) is the
    probability that a binomial number of ``guesses`` tries with chance e^epsilon / (1 + e^epsilon) is v or more. Beyond
    i = v, where f(v - i) is 1 already, the quotient only falls. How many canaries are guessed must be fixed beforehand.

    Raises:
        InputError: not 0 <= right <= guesses <= canaries, or epsilon or delta is out of its range.
    """
    if not 0 <= right <= guesses <= canaries or guesses < 1:
        raise InputError(
            f"an audit: expected right <= guesses <= canaries and a guess, got {right}, {guesses} and {canaries}"
        )
    if not (epsilon >= 0 and 0 <= delta <= 1):
        raise InputError(f"an audit: expected an epsilon of 0 or more and a delta of 0 to 1, got {epsilon} and {delta}")
    chance = special.expit(epsilon)
    at_least = stats.binom.sf(right - 1, guesses, chance)
    steps = np.arange(1, right + 1)
    between = np.cumsum(stats.binom.pmf(right - steps, guesses, chance))  # f(v - i) - f(v)
    worst = float(np.max(between / steps, initial=0.0))
    return min(1.0, float(at_least) + 2 * canaries * delta * worst)


def check_confidence(confidence: float) -> None:
    """Raises InputError for a confidence that is not between 0 and 1."""
    if not 0 < confidence < 1:
        raise InputError(f"an audit's confidence: expected a number between 0 and 1, got {confidence}")


def lower_bound(delta: float, confidence: float, *, canaries: int, guesses: int, right: int) -> float:
    """Returns an epsilon that the mechanism does not keep at ``delta``, with this confidence; 0 where none is refuted.

    It is the largest one by bisection at which the guesses would be too lucky: a mechanism that keeps it leads to an
    answer as large in at most 1 - ``confidence`` of audits. [open] The paper bisects as if the bound on the chance grew
    with epsilon. It need not for the answer to be right: who keeps an epsilon keeps all larger ones, so that every
    refuted one refutes those below it; and what is returned was itself refuted.

    Raises:
        InputError: as ``chance_of_guesses``, or ``confidence`` is not between 0 and 1.
    """
    check_confidence(confidence)

    def is_refuted(epsilon: float) -> bool:
        luck = chance_of_guesses(epsilon, delta, canaries=canaries, guesses=guesses, right=right)
        return luck <= 1 - confidence

    if not is_refuted(0.0):
        return 0.0
    refuted, beyond = 0.0, _MOST_EPSILON
    for _ in range(_HALVINGS):
        middle = (refuted + beyond) / 2
        refuted, beyond = (middle, beyond) if is_refuted(middle) else (refuted, middle)
    return refuted
