import numpy as np
import pytest
import torch
from scipy import stats

from scaleot_core.errors import InputError
from scaleot_core.privacy.sampling import poisson_sample
from scaleot_core.privacy.secret_random import SecretSource


def test_every_record_is_in_with_its_own_coin() -> None:
    samples = np.array([np.isin(np.arange(40), poisson_sample(range(40), 0.3, SecretSource())) for _ in range(3000)])
    assert stats.binomtest(int(samples.sum()), samples.size, 0.3).pvalue > 1e-6
    sizes = np.bincount(samples.sum(axis=1), minlength=41)
    expected = 3000 * stats.binom.pmf(np.arange(41), 40, 0.3)
    middle = expected > 20
    chi_square = float((((sizes - expected) ** 2) / expected)[middle].sum())
    assert stats.chi2.sf(chi_square, int(middle.sum()) - 1) > 1e-6
    between = np.corrcoef(samples[:, 0], samples[:, 1])[0, 1]
    assert abs(between) < 6 / 3000**0.5


def test_public_seeds_do_not_repeat_a_sample() -> None:
    samples = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        samples.append(poisson_sample(range(200), 0.5, SecretSource()))
    assert samples[0] != samples[1]


def test_a_sample_may_be_empty_or_whole() -> None:
    assert poisson_sample([], 0.5, SecretSource()) == []
    assert poisson_sample([1, 2, 3], 1.0, SecretSource()) == [1, 2, 3]
    assert poisson_sample([1, 2, 3], 0.0, SecretSource()) == []


@pytest.mark.parametrize("sample_rate", [-0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_probability_is_refused(sample_rate: float) -> None:
    with pytest.raises(InputError, match="probability"):
        poisson_sample([1], sample_rate, SecretSource())
