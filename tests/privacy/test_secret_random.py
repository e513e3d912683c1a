"""The secret source: that nobody can make it repeat. Its laws, on a million draws: attacks/test_noise_s24_rng.py."""

import copy
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from scaleot_core.errors import InputError
from scaleot_core.privacy.secret_random import SecretSource

LEAST_P = 1e-6
"""A right sampler fails a test once in a million runs."""
SOURCE = SecretSource()


def test_an_odd_number_of_normals_has_its_distribution_too() -> None:
    assert stats.kstest(SOURCE.normal(100_001), "norm").pvalue > LEAST_P


def test_both_halves_of_the_normals_are_independent() -> None:
    drawn = SOURCE.normal(200_000)
    assert stats.pearsonr(drawn[:100_000], drawn[100_000:]).pvalue > LEAST_P
    assert stats.pearsonr(drawn[:100_000] ** 2, drawn[100_000:] ** 2).pvalue > LEAST_P


def test_integers_below_a_bound_are_equally_likely_and_may_be_huge() -> None:
    drawn = [SOURCE.integer_below(5) for _ in range(20_000)]
    assert stats.chisquare(np.bincount(drawn, minlength=5)).pvalue > LEAST_P
    assert {SOURCE.integer_below(1) for _ in range(10)} == {0}
    assert 0 <= SOURCE.integer_below(10**50) < 10**50


@pytest.mark.parametrize("probability", [0.3, 1e-3, 0.5, 1 - 2**-53])
def test_coins_fall_as_often_as_their_probability_says(probability: float) -> None:
    true = int(SOURCE.coins(probability, 200_000).sum())
    assert stats.binomtest(true, 200_000, probability).pvalue > LEAST_P


def test_coins_of_probability_zero_and_one_are_certain() -> None:
    assert not SOURCE.coins(0.0, 1000).any()
    assert SOURCE.coins(1.0, 1000).all()


def test_a_coin_decides_a_tie_of_the_first_64_bits_by_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    probability = 2.0**-64 * 1.25  # word 1 ties, and then a quarter of the coins are true
    monkeypatch.setattr(SecretSource, "words", lambda _, count: np.ones(count, dtype=np.uint64))
    true = int(SOURCE.coins(probability, 10_000).sum())
    assert stats.binomtest(true, 10_000, 0.25).pvalue > LEAST_P


def test_a_probability_outside_its_range_is_refused() -> None:
    for probability in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="from 0 to 1"):
            SOURCE.coins(probability, 3)


def test_two_sources_and_two_draws_differ_whatever_the_public_seeds_are() -> None:
    np.random.seed(0)
    first, second = SecretSource().normal(8), SOURCE.normal(8)
    np.random.seed(0)
    assert not np.isin(np.concatenate([second, SecretSource().normal(8)]), first).any()


def test_a_source_cannot_be_seeded_copied_or_pickled_and_shows_nothing() -> None:
    with pytest.raises(TypeError):
        SecretSource(1)  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        SOURCE.seed = 1  # type: ignore[attr-defined]
    for spread in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not copied or pickled"):
            spread(SOURCE)
    assert repr(SOURCE) == "SecretSource()"


def test_a_process_that_is_started_again_draws_other_noise() -> None:
    draw = (
        "import random, numpy; random.seed(0); numpy.random.seed(0)\n"
        "from scaleot_core.privacy.secret_random import SecretSource\n"
        "print(SecretSource().normal(4).tolist())"
    )
    drawn = [
        subprocess.run([sys.executable, "-c", draw], capture_output=True, check=True, text=True).stdout
        for _ in range(2)
    ]
    assert all(len(json.loads(numbers)) == 4 for numbers in drawn)
    assert drawn[0] != drawn[1]
