"""The accountant: the epsilon of everything released so far, of whatever mechanisms, by privacy-loss distributions.

Epsilons do not add; losses do. Every kind of event has a distribution of its loss, equal events compose by a power of
its Fourier transform, different ones by convolution (Koskela et al. 2020; dp-accounting). All rounding is upwards, so
that figures are upper bounds; what float64 loses in the transform is charged to delta. Renyi accounting, 10 to 20 %
looser, is only a check of the tests.

Composition is adaptive: what is asked next may depend on what was released. *How much* noise it gets may not: kinds
and counts of events are fixed before the first release, for no theorem lets these distributions follow choices made
from what was released (Renyi filters do, at their price).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, reduce
from importlib.metadata import version
from typing import Final

from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

from scaleot_core.errors import InputError
from scaleot_core.figures import no_less
from scaleot_core.privacy.events import EventKind, PrivacyEvent, merge_events
from scaleot_core.privacy.loss_power import loss_power
from scaleot_core.privacy.noise_ranges import LEAST_DELTA, MOST_EPSILON
from scaleot_core.privacy.privacy_loss import epsilon_at, mean_loss
from scaleot_core.privacy.units import RECORD_UNIT, PrivacyScope, scope_of

ROUNDING_DELTA: Final = 2.0**-53
"""What a release takes of delta for float64's rounding in the transform: six times what it was measured to lose."""

REMEMBERED_KINDS: Final = 32
"""Distributions that a process keeps, of a few megabytes each: more than a calibration tries."""


@dataclass(frozen=True)
class PrivacyStatement:
    """A claim of differential privacy with all that it needs to mean something."""

    epsilon: float
    delta: float
    noises: tuple[str, ...]
    """The names of the noises that hid the releases."""
    scope: PrivacyScope
    releases: int
    accountant: str = f"privacy-loss distributions (dp-accounting {version('dp-accounting')}), an upper bound"

    def sentence(self) -> str:
        """Returns the claim in words, for people."""
        if not self.releases:
            return f"Nothing was released: epsilon 0 at delta {self.delta:g} for {self.scope.hidden}."
        return (
            f"({no_less(self.epsilon)}, {self.delta:g})-differential privacy of {self.scope.hidden}: "
            f"{self.releases} releases under {' and '.join(self.noises)} noise, {self.scope.sampling}; "
            f"by {self.accountant}."
        )


class Accountant:
    """Composes events; it remembers nothing about any data set, and the process remembers the distributions made."""

    def epsilon(self, events: Iterable[PrivacyEvent], delta: float) -> float:
        """Returns the least epsilon that is known to hold for all the events together.

        It is infinite where the mean of their loss passes ``MOST_EPSILON``, or where their rounding takes all of delta.

        Raises:
            InputError: ``delta`` is not from ``LEAST_DELTA`` up to, and without, 1.
        """
        check_delta(delta)
        merged = merge_events(events)
        if not merged:
            return 0.0
        exact_delta = delta - _rounding(merged)
        if exact_delta <= 0 or not self._is_bounded(merged):
            return math.inf
        return epsilon_at(self._compose(merged), exact_delta)

    def delta(self, events: Iterable[PrivacyEvent], epsilon: float) -> float:
        """Returns the least delta that is known to hold at an epsilon of 0 or more; 1 where none does."""
        merged = merge_events(events)
        if not merged:
            return 0.0
        if not self._is_bounded(merged):
            return 1.0
        return min(1.0, float(self._compose(merged).get_delta_for_epsilon(epsilon)) + _rounding(merged))

    def statement(
        self, events: Iterable[PrivacyEvent], delta: float, *, unit: tuple[str, str] = RECORD_UNIT
    ) -> PrivacyStatement:
        """Returns what may be claimed of the events, each about ``unit``; raises as ``epsilon`` does."""
        merged = merge_events(events)
        noises = tuple(dict.fromkeys(event.noise for event in merged))
        releases = sum(event.count for event in merged)
        scope = scope_of(unit, (event.sample_rate for event in merged))
        return PrivacyStatement(self.epsilon(merged, delta), delta, noises, scope, releases)

    def _compose(self, events: tuple[PrivacyEvent, ...]) -> PrivacyLossDistribution:
        powers = (loss_power(_distribution(event.kind), event.count) for event in events)
        return reduce(PrivacyLossDistribution.compose, powers)

    def _is_bounded(self, events: tuple[PrivacyEvent, ...]) -> bool:
        """Tells whether the events' mean loss is small enough for the distribution of its sum to fit in memory."""
        return sum(event.count * mean_loss(_distribution(event.kind)) for event in events) <= MOST_EPSILON


def epsilon_of(events: Iterable[PrivacyEvent], delta: float) -> float:
    """Returns the epsilon of events; see ``Accountant.epsilon``."""
    return Accountant().epsilon(events, delta)


@lru_cache(maxsize=REMEMBERED_KINDS)
def _distribution(kind: EventKind) -> PrivacyLossDistribution:
    """Returns the loss of one release; ledger, calibration and report of a process ask for the same few kinds."""
    noise, parameters, sample_rate = kind
    return PrivacyEvent(noise, dict(parameters), sample_rate, count=1).law().privacy_loss(sample_rate)


def check_delta(delta: float) -> None:
    """Raises InputError for a delta that no figure can be given for."""
    if not LEAST_DELTA <= delta < 1:
        raise InputError(f"delta: expected a number from {LEAST_DELTA:g} up to 1, got {delta}")


def _rounding(events: tuple[PrivacyEvent, ...]) -> float:
    return ROUNDING_DELTA * sum(event.count for event in events)
