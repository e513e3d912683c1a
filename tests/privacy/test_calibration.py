"""Calibration: the least noise that keeps a budget, the choice among laws, and how many rounds fit."""

import math

import pytest

from scaleot_core.errors import BudgetExhaustedError, InputError
from scaleot_core.privacy.accountant import epsilon_of
from scaleot_core.privacy.calibration import (
    NoiseBudget,
    best_noise,
    calibrate,
    check_rounds_fit,
    largest_count,
)
from scaleot_core.privacy.events import PrivacyEvent

ROUND = (PrivacyEvent("gaussian", {"noise_multiplier": 2.0}, 0.1, 10),)


@pytest.mark.parametrize(
    ("epsilon", "delta", "gaussian", "laplace", "staircase"),
    [
        (0.1, 1e-5, 30.75, 14.14, 14.14),
        (1.0, 1e-5, 3.73, 1.414, 1.385),
        (3.0, 1e-5, 1.39, 0.471, 0.391),
        (0.3, 1e-10, 18.7, 4.714, 4.705),
    ],
)
def test_one_release_needs_the_known_noise_of_every_law(
    epsilon: float, delta: float, gaussian: float, laplace: float, staircase: float
) -> None:
    choice = best_noise(NoiseBudget(epsilon, delta, sample_rate=1.0, count=1))
    assert choice.event.noise == "staircase"
    assert choice.stddev == pytest.approx(staircase, rel=0.01)
    assert choice.ratios["laplace"] == pytest.approx(laplace / gaussian, rel=0.01)
    assert choice.ratios["staircase"] == pytest.approx(staircase / gaussian, rel=0.01)
    assert choice.ratios["discrete-gaussian"] == pytest.approx(1.0, rel=1e-3)
    assert choice.ratios["lmo"] > choice.ratios["laplace"]
    assert "staircase noise, standard deviation" in choice.sentence()
    assert f"laplace {choice.ratios['laplace']:.3f}" in choice.sentence()


@pytest.mark.parametrize(("count", "ratio"), [(3, 0.657), (30, 1.352)])
def test_laplace_wins_few_releases_and_loses_many(count: int, ratio: float) -> None:
    budget = NoiseBudget(1.0, 1e-5, sample_rate=1.0, count=count)
    laplace, gaussian = (calibrate(noise, budget).law().stddev() for noise in ("laplace", "gaussian"))
    assert laplace / gaussian == pytest.approx(ratio, rel=0.01)


@pytest.mark.slow
def test_for_many_sampled_releases_the_exact_gaussian_is_chosen() -> None:
    choice = best_noise(NoiseBudget(2.0, 1e-5, sample_rate=0.0417, count=1000))
    assert choice.event.noise == "discrete-gaussian"
    assert choice.stddev == pytest.approx(2.77, rel=0.01)
    assert choice.ratios["laplace"] == pytest.approx(1.28, rel=0.01)


def test_calibrated_noise_keeps_the_budget_and_a_little_less_does_not() -> None:
    multiplier = calibrate("gaussian", NoiseBudget(2.0, 1e-5, sample_rate=0.05, count=100)).law().stddev()
    for share, keeps in ((1.0, True), (0.999, False)):
        event = PrivacyEvent("gaussian", {"noise_multiplier": share * multiplier}, 0.05, 100)
        assert (epsilon_of([event], 1e-5) <= 2.0) is keeps


def test_what_was_spent_before_is_left_out_of_the_budget() -> None:
    budget = NoiseBudget(2.0, 1e-5, sample_rate=0.1, count=20)
    event = calibrate("gaussian", budget, spent=ROUND)
    assert 1.99 < epsilon_of([*ROUND, event], 1e-5) <= 2.0
    assert event.law().stddev() > calibrate("gaussian", budget).law().stddev()


def test_on_a_wide_release_only_the_gaussians_suit_and_the_choice_says_why() -> None:
    choice = best_noise(NoiseBudget(1.0, 1e-5, sample_rate=1.0, count=1, dimension=64))
    assert choice.event.noise == "discrete-gaussian"
    assert set(choice.ratios) == {"gaussian", "discrete-gaussian"}
    assert "sqrt(2)" in choice.refused["lmo"]
    assert "unsuitable: laplace, staircase, lmo" in choice.sentence()


def test_with_an_l1_bound_the_others_are_compared_too() -> None:
    choice = best_noise(NoiseBudget(1.0, 1e-5, sample_rate=1.0, count=1, dimension=4, norm="L1"))
    assert set(choice.ratios) == {"gaussian", "discrete-gaussian", "laplace", "staircase", "lmo"}
    assert choice.event.noise == "laplace"


def test_a_budget_that_is_spent_is_refused_with_the_releases_that_fit() -> None:
    spent = [PrivacyEvent("gaussian", {"noise_multiplier": 1.0}, 1.0, 1)]
    with pytest.raises(InputError, match="At most 0 releases fit"):
        calibrate("gaussian", NoiseBudget(1.0, 1e-5, sample_rate=1.0, count=1), spent=spent)


def test_the_largest_count_fits_and_one_more_does_not() -> None:
    count = largest_count(ROUND, 1.5, 1e-5)
    assert epsilon_of([ROUND[0].times(count)], 1e-5) <= 1.5 < epsilon_of([ROUND[0].times(count + 1)], 1e-5)
    assert largest_count(ROUND, 1.5, 1e-5, spent=[ROUND[0].times(3)]) == count - 3
    assert largest_count(ROUND, 0.001, 1e-5) == 0


def test_rounds_beyond_the_budget_are_refused_with_the_rounds_that_fit() -> None:
    count = largest_count(ROUND, 1.5, 1e-5)
    check_rounds_fit(ROUND, count, 1.5, 1e-5)
    with pytest.raises(BudgetExhaustedError, match=f"Rounds of this kind that still fit: {count}") as refusal:
        check_rounds_fit(ROUND, count + 1, 1.5, 1e-5)
    assert refusal.value.rounds_that_fit == count
    with pytest.raises(BudgetExhaustedError, match=r"still fit: \d"):
        check_rounds_fit(ROUND, 10**9, 1.5, 1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: NoiseBudget(0.0, 1e-5, 1.0, 1),
        lambda: NoiseBudget(math.nan, 1e-5, 1.0, 1),
        lambda: NoiseBudget(1.0, 0.0, 1.0, 1),
        lambda: NoiseBudget(1.0, 1e-5, 0.0, 1),
        lambda: NoiseBudget(1.0, 1e-5, 1.0, 0),
        lambda: calibrate("cauchy", NoiseBudget(1.0, 1e-5, 1.0, 1)),
    ],
)
def test_a_budget_that_means_nothing_is_refused(make: object) -> None:
    with pytest.raises(InputError, match="expected"):
        make()  # type: ignore[operator]
