"""What a ledger's releases cost together, what is left, and how many rounds still fit.

Epsilon is never stored: it is computed anew from every event that was charged, by the function the caller passes in.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from scaleot_core.errors import BudgetExhaustedError
from scaleot_core.privacy.events import PrivacyEvent, merge_events
from scaleot_core.privacy.ledger_lines import LedgerChain
from scaleot_core.privacy.rounds_that_fit import most_that_fit
from scaleot_core.privacy.units import scope_of

EpsilonOf: TypeAlias = Callable[[Sequence[PrivacyEvent], float], float]
"""Epsilon of all events together at a delta, never too low; 0 for no events."""


class Budget:
    """What the events of a ledger's lines cost, as far as they go now."""

    def __init__(self, chain: LedgerChain, epsilon_of: EpsilonOf, *, epsilon: float | None = None) -> None:
        """Takes the budget of the ledger's last word, or ``epsilon`` in its place."""
        self._chain = chain
        self._epsilon_of = epsilon_of
        self._epsilon = epsilon

    @property
    def spent(self) -> float:
        """Epsilon, at the ledger's delta, of every event that was charged."""
        return self._total(())

    @property
    def left(self) -> float:
        """The budget without what is spent; 0 where a budget was lowered below it."""
        return max(self.epsilon - self.spent, 0.0)

    @property
    def epsilon(self) -> float:
        """The budget, spent and left."""
        return self._chain.budget_epsilon if self._epsilon is None else self._epsilon

    def rounds_that_fit(self, events: Sequence[PrivacyEvent]) -> int:
        """Returns how many rounds with these events still fit in the budget, at most ``MOST_ROUNDS``."""
        return most_that_fit(lambda rounds: self._fits(events, rounds))

    def check(self, events: Sequence[PrivacyEvent], *, rounds: int) -> None:
        """Checks that so many rounds with these events fit in the budget.

        Raises:
            BudgetExhaustedError: they do not; it says how many do.
        """
        if not self._fits(events, rounds):
            asked, terms = _repeated(events, rounds), self._chain.opened.terms
            rates = (event.sample_rate for event in (*self._chain.events, *asked))
            raise BudgetExhaustedError(
                spent=self.spent,
                asked=self._epsilon_of(merge_events(asked), terms.delta),
                total=self._total(asked),
                budget=self.epsilon,
                about=scope_of((terms.unit, terms.neighbouring), rates).at_delta(terms.delta),
                rounds_that_fit=self.rounds_that_fit(events),
            )

    def _fits(self, events: Sequence[PrivacyEvent], rounds: int) -> bool:
        return self._total(_repeated(events, rounds)) <= self.epsilon  # a total of NaN does not fit

    def _total(self, more: Sequence[PrivacyEvent]) -> float:
        # Merged, so that one round after another costs to the last bit what all of them together were planned to cost.
        return self._epsilon_of(merge_events((*self._chain.events, *more)), self._chain.opened.terms.delta)


def _repeated(events: Sequence[PrivacyEvent], rounds: int) -> tuple[PrivacyEvent, ...]:
    return tuple(event.times(rounds) for event in events)
