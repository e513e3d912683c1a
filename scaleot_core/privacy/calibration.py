"""Noise for a budget, before a run: how much of a law, which law, and how many rounds fit.

Epsilon falls as a law's scale grows, so the least scale that keeps a budget is found by a bracket and Brent's method;
the answer is on the safe side of the target and within twice ``PRECISION`` of the least.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

from scipy import optimize

from scaleot_core.errors import BudgetExhaustedError, InputError
from scaleot_core.figures import counted_rounds, no_less
from scaleot_core.privacy.accountant import Accountant, check_delta
from scaleot_core.privacy.discrete_gaussian import CELLS_PER_UNIT
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.laplace import staircase_of_least_variance
from scaleot_core.privacy.noise import NOISES, check_noise_suits
from scaleot_core.privacy.noise_ranges import MOST_EPSILON, Norm
from scaleot_core.privacy.rounds_that_fit import most_that_fit
from scaleot_core.privacy.units import RECORD_UNIT, scope_of

PRECISION: Final = 1e-4
"""Relative, of a calibrated scale."""
MOST_SCALE: Final = 1e6
"""So many times the bound of a term: more noise than any sum is worth."""
LMO_SHAPE: Final[Mapping[str, float]] = {
    "gamma_weight": 0.1,
    "gamma_shape": 1.0,
    "gamma_scale": 0.5,
    "exponential_weight": 0.1,
    "exponential_rate": 5.0,
    "uniform_weight": 0.9,
    "uniform_low": 1.0,
    "uniform_high": 2.0,
}
"""The mixture that is scaled where none is given: of the paper's grid the one that mixes least (see ``lmo_search``)."""
_FAR: Final = 10.0


@dataclass(frozen=True)
class NoiseBudget:
    """What noise is calibrated to: a budget, and what is to be released within it."""

    epsilon: float
    delta: float
    sample_rate: float
    count: int
    """Releases in all."""
    dimension: int = 1
    """Coordinates of a release."""
    norm: Norm = "L2"
    """In which norm a term is bounded by 1; the same for one coordinate."""
    unit: tuple[str, str] = RECORD_UNIT
    """Whose presence the budget hides, and what a neighbouring data set is (see ``units``)."""

    def __post_init__(self) -> None:
        check_delta(self.delta)
        if not 0 < self.epsilon <= MOST_EPSILON:
            raise InputError(f"epsilon: expected a number above 0 and up to {MOST_EPSILON:g}, got {self.epsilon}")
        if not 0 < self.sample_rate <= 1:
            raise InputError(f"sample_rate: expected a number above 0 and up to 1, got {self.sample_rate}")
        if self.count < 1 or self.dimension < 1:
            raise InputError(f"expected a count and a dimension of 1 or more, got {self.count} and {self.dimension}")


@dataclass(frozen=True)
class NoiseChoice:
    """The noise of least standard deviation for a budget, and how the others compare."""

    event: PrivacyEvent
    """All the releases, with the chosen noise."""
    suitable: Mapping[str, PrivacyEvent]
    """The same releases with the least of every noise that suits them, by its name."""
    refused: Mapping[str, str]
    """Every other noise, and why it does not suit."""

    @property
    def stddev(self) -> float:
        """The chosen noise's standard deviation, of one coordinate, for terms bounded by 1."""
        return self.event.law().stddev()

    @property
    def ratios(self) -> dict[str, float]:
        """Every suitable noise's standard deviation over the Gaussian's."""
        gaussian = self.suitable["gaussian"].law().stddev()
        return {noise: event.law().stddev() / gaussian for noise, event in self.suitable.items()}

    def sentence(self) -> str:
        """Returns the choice and the comparison in words, for people."""
        listed = ", ".join(f"{name} {ratio:.3f}" for name, ratio in sorted(self.ratios.items(), key=lambda row: row[1]))
        left_out = f"; unsuitable: {', '.join(self.refused)}" if self.refused else ""
        return (
            f"{self.event.noise} noise, standard deviation {self.stddev:.4g} for terms bounded by 1 "
            f"(relative to the Gaussian: {listed}{left_out})"
        )


def calibrate(
    noise: str,
    budget: NoiseBudget,
    *,
    spent: Sequence[PrivacyEvent] = (),
    lmo_shape: Mapping[str, float] = LMO_SHAPE,
) -> PrivacyEvent:
    """Returns all the releases of a budget with the least noise of a law that keeps it, after what is ``spent``.

    ``lmo_shape`` gives the mixture that is scaled where the noise is ``lmo``.

    Raises:
        InputError: there is no such noise, it does not suit the release, or no amount of it keeps the budget; then it
            says how many releases fit.
    """
    check_noise_suits(noise, dimension=budget.dimension, norm=budget.norm)
    accountant = Accountant()

    def scaled(scale: float) -> PrivacyEvent:
        parameters = _parameters(noise, scale, float(budget.dimension), lmo_shape)
        return PrivacyEvent(noise, parameters, budget.sample_rate, budget.count)

    def excess(log_scale: float) -> float:
        """By what factor epsilon passes the budget, as a logarithm: nearly a straight line, and finite everywhere."""
        try:
            event = scaled(math.exp(log_scale))
        except InputError:  # so little noise that its law refuses it
            return _FAR
        epsilon = accountant.epsilon((*spent, event), budget.delta)
        return min(math.log(max(epsilon / budget.epsilon, math.exp(-_FAR))), _FAR)

    if excess(math.log(MOST_SCALE)) > 0:
        once = replace(scaled(MOST_SCALE), count=1)
        fitting = largest_count((once,), budget.epsilon, budget.delta, spent=spent)
        before = accountant.epsilon(spent, budget.delta)
        scope = scope_of(budget.unit, (event.sample_rate for event in (*spent, once)))
        raise InputError(
            f"noise {noise}: no amount of it keeps epsilon {budget.epsilon:g} {scope.at_delta(budget.delta)}, over "
            f"{budget.count} releases after {no_less(before)} spent before. At most {counted_rounds(fitting)} "
            "releases fit: ask for fewer, or give a larger budget"
        )
    return scaled(math.exp(_least(excess)))


def noisiest(noise: str, budget: NoiseBudget) -> PrivacyEvent:
    """Returns all the releases of a budget with as much noise of a law as there is: what it passes, no noise keeps."""
    parameters = _parameters(noise, MOST_SCALE, float(budget.dimension), LMO_SHAPE)
    return PrivacyEvent(noise, parameters, budget.sample_rate, budget.count)


def best_noise(budget: NoiseBudget, *, lmo_shape: Mapping[str, float] = LMO_SHAPE) -> NoiseChoice:
    """Returns the noise of least standard deviation that keeps a budget, among all that suit the release.

    The discrete Gaussian wins a tie with the Gaussian: it is the exact one. ``lmo_shape`` is as for ``calibrate``.

    Raises:
        InputError: no noise keeps the budget.
    """
    refused: dict[str, str] = {}
    events: dict[str, PrivacyEvent] = {}
    for noise in NOISES:
        try:
            events[noise] = calibrate(noise, budget, lmo_shape=lmo_shape)
        except InputError as error:
            refused[noise] = str(error)
    if "gaussian" not in events:
        raise InputError(refused["gaussian"])
    stddevs = {noise: event.law().stddev() for noise, event in events.items()}
    least = min(stddevs.values())
    best = min(stddevs, key=stddevs.__getitem__)
    if stddevs["discrete-gaussian"] <= least * (1 + 2 * PRECISION):
        best = "discrete-gaussian"
    return NoiseChoice(events[best], events, refused)


def largest_count(
    events: Sequence[PrivacyEvent], epsilon: float, delta: float, *, spent: Sequence[PrivacyEvent] = ()
) -> int:
    """Returns how many times all of ``events`` (a round's, say) still fit in a budget after what is ``spent``.

    At most ``MOST_ROUNDS``.
    """
    accountant = Accountant()

    def fits(count: int) -> bool:
        return accountant.epsilon((*spent, *(event.times(count) for event in events)), delta) <= epsilon

    return most_that_fit(fits)


def check_rounds_fit(
    events: Sequence[PrivacyEvent],
    rounds: int,
    epsilon: float,
    delta: float,
    *,
    spent: Sequence[PrivacyEvent] = (),
    unit: tuple[str, str] = RECORD_UNIT,
) -> None:
    """Checks that all of ``events``, ``rounds`` times over, fit in a budget, of ``unit``, after what is ``spent``.

    Raises:
        BudgetExhaustedError: they do not; it says how many rounds do.
    """
    accountant = Accountant()
    asked = [event.times(rounds) for event in events]
    total = accountant.epsilon((*spent, *asked), delta)
    if not total <= epsilon:
        raise BudgetExhaustedError(
            spent=accountant.epsilon(spent, delta),
            asked=accountant.epsilon(asked, delta),
            total=total,
            budget=epsilon,
            about=scope_of(unit, (event.sample_rate for event in (*spent, *asked))).at_delta(delta),
            rounds_that_fit=largest_count(events, epsilon, delta, spent=spent),
        )


def _least(excess: Callable[[float], float]) -> float:
    """Returns about the least point at which a falling function is not above 0, never one at which it is."""
    high = 0.0
    while excess(high) > 0:
        high += math.log(2)
    low = high - math.log(2)
    while excess(low) <= 0:
        low, high = low - math.log(2), low
    point = float(optimize.brentq(excess, low, high, xtol=PRECISION / 2, rtol=1e-12))
    while excess(point) > 0:
        point += PRECISION / 2
    return point


def _parameters(noise: str, scale: float, dimension: float, lmo_shape: Mapping[str, float]) -> dict[str, float]:
    """Returns a law's parameters for a scale: one number that says how much noise of it there is."""
    if noise == "gaussian":
        return {"noise_multiplier": scale}
    if noise == "discrete-gaussian":
        return {"noise_multiplier": scale, "cells_per_unit": CELLS_PER_UNIT}
    if noise == "laplace":
        return {"scale": scale, "dimension": dimension}
    if noise == "staircase":
        return asdict(staircase_of_least_variance(1 / scale, dimension))
    return {**lmo_shape, "scale": scale, "dimension": dimension}
