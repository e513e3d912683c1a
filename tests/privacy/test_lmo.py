"""LMO noise: closed forms against sampling and quadrature, the papers' parameters at their true price, the search."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate, special

from scaleot_core.privacy.accountant import Accountant, epsilon_of
from scaleot_core.privacy.calibration import LMO_SHAPE, NoiseBudget, calibrate
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.lmo import Lmo
from scaleot_core.privacy.lmo_search import mixing, paper_shapes, search_lmo
from scaleot_core.privacy.privacy_loss import epsilon_at
from scaleot_core.privacy.secret_random import Floats, SecretSource

SOURCE = SecretSource()
PUBLISHED = {
    "0.3": Lmo(0.1, 1.0, 0.5, 0.1, 5.0, 0.1, 1.0, 2.0),
    "0.7": Lmo(0.1, 1.0, 0.5, 0.1, 5.0, 0.1, 5.0, 6.0),
    "2": Lmo(0.1, 2.0, 1.0, 0.1, 5.0, 0.2, 7.0, 8.0),
    "3": Lmo(0.1, 2.0, 1.0, 0.1, 5.0, 0.9, 2.0, 3.0),
    "useful 0.3": Lmo(0.1, 1.0, 7.5, 0.9, 1.0, 0.1, 1.0, 2.0),
}
"""The parameter files of the authors' artefact (task1, optU), by the epsilon they claim."""
DELTA = 1e-10


def shipped(law: Lmo) -> Lmo:
    """The law that the artefact's sampler draws: it takes the exponential's rate for its scale."""
    return replace(law, exponential_rate=1 / law.exponential_rate)


def draw_rates(law: Lmo, count: int) -> Floats:
    """u by its definition."""
    gamma = special.gammaincinv(law.gamma_shape, SOURCE.uniform(count)) * law.gamma_scale
    exponential = SOURCE.exponential(count) / law.exponential_rate
    uniform = law.uniform_low + (law.uniform_high - law.uniform_low) * SOURCE.uniform(count)
    return law.gamma_weight * gamma + law.exponential_weight * exponential + law.uniform_weight * uniform


@pytest.mark.parametrize("law", [*PUBLISHED.values(), Lmo(0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 3.0, scale=2.0)])
def test_closed_forms_agree_with_the_mean_over_drawn_rates(law: Lmo) -> None:
    rates = draw_rates(law, 400_000) / law.scale
    for t in (0.0, 0.3, 1.0, 4.0):
        weights = np.exp(-rates * t)
        at = np.array([t])
        assert law.survival(at)[0] == pytest.approx(weights.mean() / 2, abs=2e-3)
        assert law.density(at)[0] == pytest.approx((rates * weights).mean() / 2, rel=0.02)
    pure = math.log(rates.mean() / (rates * np.exp(-rates)).mean())
    assert law.pure_epsilon() == pytest.approx(pure, rel=0.03, abs=2e-3)
    assert law.mean_magnitude() == pytest.approx((1 / rates).mean(), rel=0.01)
    assert law.stddev() == pytest.approx(math.sqrt((2 / rates**2).mean()), rel=0.02)


@pytest.mark.parametrize("law", list(PUBLISHED.values()))
def test_density_survival_and_fisher_information_agree_by_quadrature(law: Lmo) -> None:
    mass = integrate.quad(lambda t: float(law.density(np.array([t]))[0]), 1.0, 3.0)[0]
    nearer, farther = law.survival(np.array([1.0, 3.0]))
    assert mass == pytest.approx(nearer - farther, rel=1e-9)

    def score_square(t: float) -> float:
        step = 1e-4 * max(t, 1e-2)
        around = law.density(np.array([t - step, t, t + step]))
        return float(((around[2] - around[0]) / (2 * step)) ** 2 / around[1])

    edges = [1e-7, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 400.0]
    pieces = itertools.pairwise(edges)
    information = 2 * sum(integrate.quad(score_square, low, high, limit=200)[0] for low, high in pieces)
    assert information == pytest.approx(law.fisher_information(), rel=2e-3)


def test_narrow_and_wide_uniform_parts_meet_without_a_step() -> None:
    law = Lmo(0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 2.0)
    just_below, just_above = law.density(np.array([1e-2 * (1 - 1e-9), 1e-2 * (1 + 1e-9)]))
    assert just_below == pytest.approx(just_above, rel=1e-10)


def test_laws_with_too_heavy_tails_have_no_spread() -> None:
    thin = Lmo(1.0, 1.5, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0)
    assert thin.stddev() == math.inf
    assert thin.mean_magnitude() == pytest.approx(1 / 0.5)  # E[1 / u] of a gamma: 1 / ((k - 1) theta)
    assert replace(thin, gamma_shape=4.0).stddev() == pytest.approx(math.sqrt(2 / 6))  # 1 / ((k - 1) (k - 2))
    assert replace(thin, gamma_shape=0.9).mean_magnitude() == math.inf


@pytest.mark.parametrize("law", list(PUBLISHED.values()))
def test_no_mixture_comes_within_the_square_root_of_two_of_the_gaussian(law: Lmo) -> None:
    assert law.fisher_information() * law.stddev() ** 2 >= 2


@pytest.mark.parametrize(
    ("claim", "accounted", "drawn"),
    [("0.3", 0.235, 0.88), ("0.7", 0.62, 1.17), ("2", 1.72, 2.18), ("3", 2.46, 2.90), ("useful 0.3", 1.87, 1.87)],
)
def test_published_parameters_cost_their_true_epsilon_on_one_number(claim: str, accounted: float, drawn: float) -> None:
    for law, expected in ((PUBLISHED[claim], accounted), (shipped(PUBLISHED[claim]), drawn)):
        assert law.pure_epsilon() == pytest.approx(expected, rel=0.012)
        epsilon = epsilon_at(law.privacy_loss(1.0), DELTA)
        assert law.pure_epsilon() * (1 - 1e-6) <= epsilon <= law.pure_epsilon() + 2e-4


@pytest.mark.parametrize(
    ("claim", "claimed_overall", "accounted", "drawn"), [("0.3", 0.16, 0.57, 2.72), ("2", 0.82, 19.3, 36.0)]
)
def test_published_parameters_cost_many_times_their_claim_on_a_wide_gradient(
    claim: str, claimed_overall: float, accounted: float, drawn: float
) -> None:
    """SST-2 of the paper; in many dimensions the noise is as good as a Gaussian of its Fisher information."""
    accountant = Accountant()
    for law, expected in ((PUBLISHED[claim], accounted), (shipped(PUBLISHED[claim]), drawn)):
        as_good_as = {"noise_multiplier": 1 / math.sqrt(law.fisher_information())}
        epsilon = accountant.epsilon([PrivacyEvent("gaussian", as_good_as, 2048 / 67350, 192)], DELTA)
        assert epsilon == pytest.approx(expected, rel=0.02)
        assert epsilon > 3 * claimed_overall


@pytest.mark.parametrize(
    ("claim", "accounted", "drawn"),
    [
        ("0.3", 4.876, 2.153),
        ("0.7", 1.628, 1.057),
        ("2", 0.586, 0.476),
        ("3", 0.411, 0.351),
        ("useful 0.3", 0.871, 0.872),
    ],
)
def test_published_parameters_have_the_noise_that_the_independent_check_finds(
    claim: str, accounted: float, drawn: float
) -> None:
    assert PUBLISHED[claim].mean_magnitude() == pytest.approx(accounted, rel=2e-3)
    assert shipped(PUBLISHED[claim]).mean_magnitude() == pytest.approx(drawn, rel=2e-3)


@pytest.mark.parametrize(("gamma_scale", "published", "truth"), [(0.08, 3.406, 1.955), (0.32, 19.694, 45.533)])
def test_plrvo_s_formula_falls_below_the_price_of_its_noise_on_a_wide_gradient(
    gamma_scale: float, published: float, truth: float
) -> None:
    """Its repository's example, clipped to 0.1: rates of a gamma law alone, on every coordinate."""
    law = Lmo(1.0, 80.0, gamma_scale, 0.0, 1.0, 0.0, 0.0, 1.0)
    as_good_as = {"noise_multiplier": 1 / math.sqrt(law.fisher_information()) / 0.1}
    epsilon = epsilon_of([PrivacyEvent("gaussian", as_good_as, 0.04, 250)], 1e-5)
    assert truth * 0.98 <= epsilon <= truth  # theirs rounds each of 250 losses up to a multiple of 1e-3
    assert (published < epsilon) is (gamma_scale > 0.3)


def test_an_lmo_that_does_not_mix_is_laplace_noise() -> None:
    certain = {"uniform_weight": 1.0, "uniform_low": 1 - 1e-6, "uniform_high": 1 + 1e-6}
    none = {"gamma_weight": 0.0, "gamma_shape": 1.0, "gamma_scale": 1.0, "exponential_weight": 0.0}
    lmo = {**certain, **none, "exponential_rate": 1.0, "scale": 2.0, "dimension": 1.0}
    for sample_rate, count in ((1.0, 1), (0.05, 300), (1.0, 30)):
        laplace = PrivacyEvent("laplace", {"scale": 2.0, "dimension": 1.0}, sample_rate, count)
        expected = epsilon_of([laplace], 1e-5)
        assert epsilon_of([PrivacyEvent("lmo", lmo, sample_rate, count)], 1e-5) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("law", [PUBLISHED["0.3"], PUBLISHED["3"], PUBLISHED["useful 0.3"]])
def test_a_move_of_less_than_the_bound_costs_no_more(law: Lmo) -> None:
    points = np.concatenate([-np.geomspace(1e3, 1e-4, 40_000), [0.0], np.geomspace(1e-4, 1e3, 40_000)])
    base = law.density(points)

    def divergence(move: float, epsilon: float) -> float:
        excess = np.maximum(law.density(points - move) - math.exp(epsilon) * base, 0)
        return float(np.trapezoid(excess, points))

    for share in (0.1, 0.5, 0.9):
        epsilon = share * law.pure_epsilon()
        whole = divergence(1.0, epsilon)
        assert all(divergence(move, epsilon) <= whole + 1e-7 for move in (0.05, 0.3, 0.6, 0.9, 0.99))


def test_cells_bound_the_divergence_of_the_exact_densities_from_above_and_closely() -> None:
    law = PUBLISHED["2"]
    points = np.concatenate([np.linspace(-60, 0, 300_001), np.linspace(0, 1, 50_001), np.linspace(1, 61, 300_001)])
    unmoved, moved = law.density(points), law.density(points - 1)
    for sample_rate in (1.0, 0.1):
        distribution = law.privacy_loss(sample_rate)
        mixed = (1 - sample_rate) * unmoved + sample_rate * moved
        for epsilon in (0.0, 0.05, 0.3, 1.0):
            removed = float(np.trapezoid(np.maximum(mixed - math.exp(epsilon) * unmoved, 0), points))
            bound = float(distribution.get_delta_for_epsilon(epsilon))
            added = float(np.trapezoid(np.maximum(unmoved - math.exp(epsilon) * mixed, 0), points))
            assert bound == pytest.approx(max(removed, added), abs=1e-5)
            assert bound >= max(removed, added) - 1e-7


def test_on_a_vector_with_an_l1_bound_the_greatest_loss_grows_with_the_dimension() -> None:
    """So the scalar's bound does not hold there; spread evenly, a term loses the most."""
    law = PUBLISHED["0.3"]
    wide = replace(law, dimension=16.0)
    assert wide.pure_epsilon() > law.pure_epsilon()
    density = law.density(np.array([0.0, 1 / 16, 0.5, 0.25]))
    evenly = 16 * math.log(density[0] / density[1])
    unevenly = math.log(density[0] / density[2]) + 2 * math.log(density[0] / density[3])
    assert wide.pure_epsilon() == pytest.approx(evenly)
    assert law.pure_epsilon() < unevenly < evenly
    assert epsilon_at(wide.privacy_loss(1.0), DELTA) == pytest.approx(evenly, abs=2e-4)


def test_the_papers_grid_has_its_size_and_only_valid_mixtures() -> None:
    shapes = list(paper_shapes())
    assert len(shapes) == 40_824
    for shape in shapes[::997]:
        assert Lmo(**shape).pure_epsilon() > 0


@pytest.mark.slow
def test_the_default_mixture_is_the_one_of_the_papers_grid_that_mixes_least() -> None:
    weights = ("gamma_weight", "exponential_weight", "uniform_weight")
    corners = [shape for shape in paper_shapes() if {shape[weight] for weight in weights} <= {0.1, 0.9}]
    assert min(corners, key=mixing) == LMO_SHAPE
    assert 2 < mixing(LMO_SHAPE) < 2.25


def test_the_search_finds_the_least_noise_among_its_mixtures_and_none_below_laplace() -> None:
    budget = NoiseBudget(epsilon=1.0, delta=1e-5, sample_rate=1.0, count=1)
    shapes = list(paper_shapes())[::9001]
    found = calibrate("lmo", budget, lmo_shape=search_lmo(budget, shapes))
    stddevs = [calibrate("lmo", budget, lmo_shape=shape).law().stddev() for shape in shapes]
    assert found.law().stddev() == pytest.approx(min(stddevs), rel=1e-3)
    assert epsilon_of([found], 1e-5) <= 1.0
    assert found.law().stddev() > calibrate("laplace", budget).law().stddev()
