"""The accountant: an upper bound, near dp-accounting's and exact values, over mixtures of mechanisms."""

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as reference
from dp_accounting.rdp import RdpAccountant
from scipy import optimize, special

from scaleot_core.errors import InputError
from scaleot_core.privacy.accountant import ROUNDING_DELTA, Accountant, _distribution, epsilon_of
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.laplace import Staircase, staircase_of_least_variance
from scaleot_core.privacy.loss_power import loss_power
from scaleot_core.privacy.privacy_loss import epsilon_at, parts_of, pure_loss
from tests.support.privacy_events import gaussian, laplace


def exact_gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Balle and Wang (2018), theorem 8, solved for epsilon."""

    def excess(epsilon: float) -> float:
        above = special.log_ndtr(0.5 / noise_multiplier - epsilon * noise_multiplier)
        below = special.log_ndtr(-0.5 / noise_multiplier - epsilon * noise_multiplier)
        return math.exp(above) - math.exp(epsilon + below) - delta

    return float(optimize.brentq(excess, 0.0, 200.0, xtol=1e-12))


@pytest.mark.parametrize(("noise_multiplier", "count"), [(1.0, 1), (10.0, 100), (30.0, 1000), (100.0, 10_000)])
@pytest.mark.parametrize("delta", [1e-5, 1e-9, 1e-10, 1e-11])
def test_many_gaussian_releases_cost_what_one_of_the_composed_noise_does_exactly(
    noise_multiplier: float, count: int, delta: float
) -> None:
    epsilon = epsilon_of([gaussian(noise_multiplier, count=count)], delta)
    exact = exact_gaussian_epsilon(noise_multiplier / math.sqrt(count), delta)
    assert exact <= epsilon <= exact * 1.01


@pytest.mark.parametrize(
    ("noise_multiplier", "sample_rate", "count"),
    [(1.0, 0.05, 200), (0.8, 0.01, 1000), (8.0, 0.0625, 10_000), (3.0, 1.0, 5), (30.0, 0.001, 1000)],
)
def test_sampled_gaussians_agree_with_dp_accounting_and_are_never_below(
    noise_multiplier: float, sample_rate: float, count: int
) -> None:
    composed = reference.from_gaussian_mechanism(noise_multiplier, sampling_prob=sample_rate).self_compose(count)
    expected = composed.get_epsilon_for_delta(1e-5)
    epsilon = epsilon_of([gaussian(noise_multiplier, sample_rate, count)], 1e-5)
    assert expected <= epsilon <= expected * 1.01


@pytest.mark.parametrize(("scale", "sample_rate", "count"), [(1.0, 1.0, 1), (20.0, 0.05, 300), (2.0, 0.3, 30)])
def test_sampled_laplace_agrees_with_dp_accounting_and_is_never_below(
    scale: float, sample_rate: float, count: int
) -> None:
    composed = reference.from_laplace_mechanism(scale, sampling_prob=sample_rate).self_compose(count)
    expected = composed.get_epsilon_for_delta(1e-5)
    epsilon = epsilon_of([laplace(scale, sample_rate, count)], 1e-5)
    assert expected <= epsilon <= expected * 1.01


def test_a_mixture_of_mechanisms_agrees_with_dp_accounting_and_is_never_below() -> None:
    events = [gaussian(3.0, 0.05, 300), laplace(20.0, 0.05, 300), gaussian(5.0, 1.0, 2)]
    parts = [
        reference.from_gaussian_mechanism(3.0, sampling_prob=0.05).self_compose(300),
        reference.from_laplace_mechanism(20.0, sampling_prob=0.05).self_compose(300),
        reference.from_gaussian_mechanism(5.0).self_compose(2),
    ]
    expected = parts[0].compose(parts[1]).compose(parts[2]).get_epsilon_for_delta(1e-5)
    epsilon = epsilon_of(events, 1e-5)
    assert expected <= epsilon <= expected * 1.01
    assert epsilon_of(events[::-1], 1e-5) == pytest.approx(epsilon, rel=1e-9)


@pytest.mark.parametrize(("noise_multiplier", "cells"), [(1.0, 16.0), (1.0, 64.0), (2.0, 32.0)])
@pytest.mark.parametrize(("sample_rate", "count"), [(1.0, 1), (0.05, 100)])
def test_the_discrete_gaussian_costs_no_less_than_dp_accounting_says_of_one_coordinate(
    noise_multiplier: float, cells: float, sample_rate: float, count: int
) -> None:
    exact = reference.from_discrete_gaussian_mechanism(
        noise_multiplier * cells, sensitivity=int(cells), sampling_prob=sample_rate, use_connect_dots=True
    )
    expected = exact.self_compose(count).get_epsilon_for_delta(1e-5)
    parameters = {"noise_multiplier": noise_multiplier, "cells_per_unit": cells}
    epsilon = epsilon_of([PrivacyEvent("discrete-gaussian", parameters, sample_rate, count)], 1e-5)
    assert expected <= epsilon <= expected * 1.02


def test_on_the_default_lattice_the_discrete_gaussian_costs_what_the_gaussian_does() -> None:
    discrete = PrivacyEvent("discrete-gaussian", {"noise_multiplier": 1.0, "cells_per_unit": 2.0**16}, 0.05, 200)
    assert epsilon_of([discrete], 1e-5) == pytest.approx(epsilon_of([gaussian(1.0, 0.05, 200)], 1e-5), rel=1e-6)


@pytest.mark.parametrize(("noise_multiplier", "sample_rate", "count"), [(1.0, 0.05, 200), (0.8, 0.01, 1000)])
def test_renyi_accounting_is_never_below(noise_multiplier: float, sample_rate: float, count: int) -> None:
    renyi = RdpAccountant()
    event = dp_accounting.GaussianDpEvent(noise_multiplier)
    renyi.compose(dp_accounting.PoissonSampledDpEvent(sample_rate, event), count)
    assert renyi.get_epsilon(1e-5) >= epsilon_of([gaussian(noise_multiplier, sample_rate, count)], 1e-5)


def test_a_release_of_pure_noise_never_costs_more_than_its_greatest_loss() -> None:
    staircase = staircase_of_least_variance(1.5)
    event = PrivacyEvent("staircase", {"epsilon": 1.5, "step": staircase.step, "dimension": 1.0}, 1.0, 1)
    assert 1.49 < epsilon_of([event], 1e-5) <= 1.5 + 1e-4
    assert 1.49 < epsilon_of([laplace(1 / 1.5)], 1e-5) <= 1.5 + 1e-4


def test_a_staircase_move_of_less_than_the_bound_costs_no_more() -> None:
    noise = Staircase(1.0, 0.4)
    edges = np.linspace(-40, 41, 810_001)
    base = -np.diff(noise.survival(edges))

    def divergence(move: float, epsilon: float) -> float:
        return float(np.maximum(-np.diff(noise.survival(edges - move)) - math.exp(epsilon) * base, 0).sum())

    for epsilon in (0.1, 0.5, 0.9):
        whole = divergence(1.0, epsilon)
        assert all(divergence(move, epsilon) <= whole + 1e-12 for move in (0.1, 0.3, 0.4, 0.6, 0.9))


def test_in_many_coordinates_laplace_noise_costs_its_greatest_loss() -> None:
    scalar = epsilon_of([laplace(2.0, 0.1, 100)], 1e-5)
    vector = epsilon_of([laplace(2.0, 0.1, 100, dimension=64.0)], 1e-5)
    assert scalar < vector < 1.1 * scalar
    exact = loss_power(pure_loss(0.5, 0.1), 100)
    assert vector == pytest.approx(epsilon_at(exact, 1e-5), rel=1e-6)


def test_delta_at_the_epsilon_found_is_the_delta_asked_for() -> None:
    accountant, events = Accountant(), [gaussian(1.0, 0.05, 200)]
    assert accountant.delta(events, accountant.epsilon(events, 1e-5)) == pytest.approx(1e-5, rel=1e-3)


def test_epsilon_grows_with_every_release_and_is_zero_without_any() -> None:
    accountant = Accountant()
    assert accountant.epsilon([], 1e-5) == 0.0
    spent = [accountant.epsilon([gaussian(2.0, 0.1, count)], 1e-5) for count in (1, 2, 3, 10, 100)]
    assert spent == sorted(spent)
    assert spent[0] > 0


def test_a_loss_without_measure_is_infinite_and_takes_no_memory() -> None:
    assert epsilon_of([gaussian(1.0, 1.0, 10**9)], 1e-5) == math.inf
    assert Accountant().delta([gaussian(1.0, 1.0, 10**9)], 1.0) == 1.0
    assert epsilon_of([gaussian(1000.0, 1e-4, 10**6)], 1e-11) == math.inf  # float64's rounding takes all of delta


@pytest.mark.parametrize("delta", [0.0, 1e-12, 1.0, -1.0, math.nan])
def test_a_delta_that_no_figure_can_be_given_for_is_refused(delta: float) -> None:
    with pytest.raises(InputError, match="delta: expected"):
        epsilon_of([gaussian(1.0)], delta)


def test_a_statement_names_all_that_a_claim_needs() -> None:
    statement = Accountant().statement([gaussian(1.0, 0.05, 200), laplace(50.0)], 1e-5)
    sentence = statement.sentence()
    for part in ("one training record", "add/remove", "Poisson", "0.05", "gaussian and laplace", "1e-05", "201"):
        assert part in sentence
    assert f"{statement.epsilon:.4g}" in sentence
    assert "Nothing was released" in Accountant().statement([], 1e-5).sentence()


def test_a_process_makes_the_distribution_of_a_kind_once_whoever_asks() -> None:
    event = gaussian(1.234, 0.05, 200)
    epsilon_of([event], 1e-5)
    made = _distribution.cache_info().misses
    assert Accountant().epsilon([event.times(3)], 1e-6) > epsilon_of([event], 1e-5)
    assert _distribution.cache_info().misses == made


@pytest.mark.parametrize(
    ("events", "theirs"),
    [
        ([gaussian(1.0)], 4.377),
        ([gaussian(2.0, 0.05, 300)], 1.9286),
        ([gaussian(8.0, 0.0625, 10_000)], 3.318),
        ([gaussian(0.8, 0.01, 1000)], 3.1408),
        ([laplace(20.0, 0.05, 300)], 0.13541),
        ([gaussian(3.0, 0.05, 300)], 1.15907),
        ([laplace(20.0, 0.05, 300), gaussian(3.0, 0.05, 300)], 1.17115),
    ],
)
def test_the_printed_figures_of_the_independent_accountants_are_ours_too(
    events: list[PrivacyEvent], theirs: float
) -> None:
    """What ``pld_core.py`` and ``custom_pld_in_dp_accounting.py`` of the checks print, at their delta of 1e-5."""
    assert epsilon_of(events, 1e-5) == pytest.approx(theirs, rel=5e-4)


def test_the_rounding_of_every_release_is_taken_off_delta() -> None:
    event = PrivacyEvent("gaussian", {"noise_multiplier": 500.0}, 1.0, 50_000)
    composed = loss_power(_distribution(event.kind), event.count)
    taken = 1e-11 - 50_000 * ROUNDING_DELTA
    assert 0 < taken < 1e-11
    assert epsilon_of([event], 1e-11) == epsilon_at(composed, taken) > epsilon_at(composed, 1e-11)


def test_rare_samples_with_little_noise_need_no_gigabytes() -> None:
    """Their great losses are so rare that no bound at the usual orders confines them."""
    event = gaussian(0.125, 1e-6, 1000)
    composed = loss_power(_distribution(event.kind), event.count)
    assert all(part.size < 5_000_000 for part in parts_of(composed))
