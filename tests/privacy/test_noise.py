"""Every noise: samples, survival and spread are of one law; what does not suit is refused."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from scaleot_core.errors import InputError
from scaleot_core.privacy.discrete_gaussian import DiscreteGaussian
from scaleot_core.privacy.gaussian import Gaussian
from scaleot_core.privacy.laplace import Laplace, Staircase, staircase_of_least_variance
from scaleot_core.privacy.lmo import Lmo
from scaleot_core.privacy.noise import NOISES, ScalarNoise, check_noise_suits, noise_from
from scaleot_core.privacy.noise_ranges import LEAST_NOISE_MULTIPLIER
from scaleot_core.privacy.secret_random import SecretSource

LEAST_P = 1e-6
SOURCE = SecretSource()
CONTINUOUS = [
    Gaussian(1.7),
    Laplace(0.6),
    Staircase(2.0, 0.3),
    Lmo(0.1, 2.0, 1.0, 0.1, 5.0, 0.2, 7.0, 8.0, scale=1.3),
    Lmo(1.0, 0.7, 2.0, 0.0, 1.0, 0.0, 0.0, 1.0),
]


def names(noise: ScalarNoise) -> str:
    return type(noise).__name__


@pytest.mark.parametrize("noise", CONTINUOUS, ids=names)
def test_fresh_samples_follow_the_survival_function(noise: ScalarNoise) -> None:
    drawn = noise.sample(SOURCE, 100_000)
    assert stats.kstest(drawn, lambda values: 1 - noise.survival(values)).pvalue > LEAST_P


@pytest.mark.parametrize("noise", CONTINUOUS[:4], ids=names)
def test_the_standard_deviation_is_that_of_the_survival_function(noise: ScalarNoise) -> None:
    def moment(t: float) -> float:
        return 4 * t * float(noise.survival(np.array([t]))[0])

    variance = sum(integrate.quad(moment, low, low + 0.5, epsabs=1e-12)[0] for low in np.arange(0, 80, 0.5))
    assert math.sqrt(variance) == pytest.approx(noise.stddev(), rel=1e-6)


@pytest.mark.parametrize("noise", [*CONTINUOUS, DiscreteGaussian(1.0)], ids=names)
def test_two_draws_of_noise_have_nothing_in_common(noise: ScalarNoise) -> None:
    first, second = noise.sample(SOURCE, 50), noise.sample(SecretSource(), 50)
    assert not np.array_equal(first, second)


def test_the_discrete_gaussian_has_exactly_its_masses() -> None:
    noise = DiscreteGaussian(2.3, cells_per_unit=8.0)
    stddev = 2.3 * 8
    drawn = noise.sample_cells(SOURCE, 5_000)
    cells = np.arange(-400, 401)
    masses = np.exp(-0.5 * (cells / stddev) ** 2)
    inner = np.abs(cells) <= 50
    expected = np.append(masses[inner], masses[~inner].sum()) / masses.sum()
    observed = np.append(np.bincount(drawn[np.abs(drawn) <= 50] + 50, minlength=101), (np.abs(drawn) > 50).sum())
    assert stats.chisquare(observed, expected * len(drawn)).pvalue > LEAST_P


def test_the_discrete_gaussian_survives_as_its_masses_say() -> None:
    noise = DiscreteGaussian(2.0, cells_per_unit=8.0)
    cells = np.arange(-2000, 2001)
    masses = np.exp(-0.5 * (cells / 16) ** 2)
    values = np.array([-3.0, -0.01, 0.0, 0.125, 0.13, 4.0])
    expected = [masses[cells / 8 > value].sum() / masses.sum() for value in values]
    assert noise.survival(values) == pytest.approx(expected, abs=1e-7)


def test_discrete_noise_lies_on_its_lattice_in_float64() -> None:
    noise = DiscreteGaussian(3.7)
    cells = noise.sample(SOURCE, 500) * noise.cells_per_unit
    assert np.array_equal(cells, np.rint(cells))
    assert stats.kstest(cells / noise.cells_per_unit / 3.7, "norm").pvalue > LEAST_P


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0, 8.0])
def test_the_staircase_of_least_variance_has_none_below_it(epsilon: float) -> None:
    found = optimize.minimize_scalar(
        lambda step: Staircase(epsilon, step).stddev(), bounds=(1e-4, 0.9999), method="bounded"
    )
    assert staircase_of_least_variance(epsilon).stddev() == pytest.approx(found.fun, rel=1e-9)


def test_heavy_tails_are_really_clamped_by_the_sampler() -> None:
    endless = Lmo(1.0, 0.001, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0)
    assert endless.stddev() == math.inf
    drawn = np.abs(endless.sample(SOURCE, 2000))
    assert drawn.max() == 2.0**100
    assert 1e3 + 2.0**100 == 2.0**100  # so that clamping the noise clamps the release


def test_every_row_is_made_from_exactly_its_parameters() -> None:
    assert noise_from("gaussian", {"noise_multiplier": 2.0}) == Gaussian(2.0)
    for name in NOISES:
        with pytest.raises(InputError, match=f"noise {name}: expected the parameters"):
            noise_from(name, {"what": 1.0})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gaussian(0.01),
        lambda: Gaussian(math.inf),
        lambda: Gaussian(1e200),
        lambda: DiscreteGaussian(1.0, cells_per_unit=2.0**60),
        lambda: Laplace(1.0, dimension=1e30),
        lambda: Staircase(1e-9, 0.5),
        lambda: Lmo(1.0, 1.0, 1.0, 1.0, 1e-320, 0.0, 0.0, 1.0),
        lambda: DiscreteGaussian(1.0, cells_per_unit=3.0),
        lambda: DiscreteGaussian(1.0, cells_per_unit=4.0),
        lambda: Laplace(0.001),
        lambda: Laplace(1.0, dimension=0.0),
        lambda: Staircase(1.0, 1.0),
        lambda: Staircase(30.0, 0.5, dimension=10.0),
        lambda: Lmo(0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0),
        lambda: Lmo(1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 2.0, 1.0),
        lambda: Lmo(1.0, 1.0, 1.0, -1.0, 1.0, 0.0, 0.0, 1.0),
        lambda: Lmo(0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 2.0, scale=1e-3),
    ],
)
def test_parameters_that_mean_nothing_or_hide_nothing_are_refused(make: Callable[[], ScalarNoise]) -> None:
    with pytest.raises(InputError, match=r"^noise [a-z-]+.*expected"):
        make()


@pytest.mark.parametrize("name", ["lmo", "laplace", "staircase"])
def test_noise_that_needs_an_l1_bound_is_refused_on_a_vector_without_one(name: str) -> None:
    with pytest.raises(InputError, match=r"64 coordinates clipped in the Euclidean norm is refused.*sqrt\(2\)"):
        check_noise_suits(name, dimension=64, norm="L2")
    check_noise_suits(name, dimension=64, norm="L1")
    check_noise_suits(name, dimension=1, norm="L2")
    check_noise_suits("discrete-gaussian", dimension=64, norm="L2")


def test_an_unknown_noise_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="expected one of gaussian"):
        check_noise_suits("cauchy", dimension=1, norm="L1")


def test_the_staircase_of_the_smallest_epsilon_has_a_deviation_without_a_table_of_its_stairs() -> None:
    assert Staircase(1e-7, 0.5).stddev() == pytest.approx(2**0.5 * 1e7, rel=1e-6), "it tends to Laplace's"


def test_the_loss_of_the_discrete_gaussian_is_that_of_less_noise_even_at_the_least() -> None:
    discrete = DiscreteGaussian(LEAST_NOISE_MULTIPLIER, cells_per_unit=256.0).privacy_loss(1.0)
    normal = Gaussian(LEAST_NOISE_MULTIPLIER).privacy_loss(1.0)
    assert discrete.get_epsilon_for_delta(1e-5) > normal.get_epsilon_for_delta(1e-5)
