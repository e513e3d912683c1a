"""S24: the secret noise comes from the operating system's generator alone, and is what it should be."""

import os
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch.overrides import TorchFunctionMode

from scaleot_core.privacy import secret_random
from scaleot_core.privacy.client_level import ClientLevelNoise, NoisedMean
from scaleot_core.privacy.gaussian import Gaussian
from scaleot_core.privacy.laplace import Laplace
from scaleot_core.privacy.mechanism import MECHANISMS
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.progress import SilentReporter
from scaleot_core.shapes import TensorDict
from tests.privacy.test_mechanism import ROWS
from tests.support.private_tasks import attached_adapter, private_task, random_examples
from tests.support.updates import random_state

DRAWS = 1_000_000
LEAST_P = 1e-3
LAGS = 20


def mechanism_release(name: str) -> TensorDict:
    mechanism = next(row for row in ROWS if type(row) is MECHANISMS[name])
    attached = attached_adapter()
    task = private_task(attached, random_examples(5), mechanism.choose_way(attached, pad_token_id=0))
    secret = SecretSource()
    return mechanism.release(task, secret=secret, charge=lambda _: None, reporter=SilentReporter()).tensors


def server_release() -> TensorDict:
    mean = NoisedMean(random_state(0), ClientLevelNoise(1.0, 1.0, 2), SecretSource())
    for number in (1, 2):
        mean.add(f"clinic-{number}", random_state(number), num_examples=1, train_loss=None)
    return mean.read().adapter


RELEASES: dict[str, Callable[[], TensorDict]] = {
    **{name: lambda name=name: mechanism_release(name) for name in MECHANISMS},
    "client-level": server_release,
}
every_release = pytest.mark.parametrize("release", RELEASES.values(), ids=RELEASES)


class Tape:
    """Gives the operating system's random bytes, and the same ones again when it is wound back."""

    def __init__(self) -> None:
        self._bytes, self._place = bytearray(), 0

    def rewind(self) -> None:
        self._place = 0

    def __call__(self, size: int) -> bytes:
        missing = self._place + size - len(self._bytes)
        self._bytes += _URANDOM(max(missing, 0))
        self._place += size
        return bytes(self._bytes[self._place - size : self._place])


_URANDOM = os.urandom


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@every_release
def test_s24_a_release_is_a_function_of_the_systems_random_bytes_and_of_no_other_generators_state(
    release: Callable[[], TensorDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else drew on the way would make the second release differ from the first."""
    tape = Tape()
    monkeypatch.setattr(secret_random.os, "urandom", tape)
    with torch.random.fork_rng(devices=[]):
        seed_everything(1)
        first = release()
        tape.rewind()
        seed_everything(2)
        second = release()
        third = release()  # further along on the tape
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, third[name]) for name, tensor in first.items())


class Draws(TorchFunctionMode):
    """Notes every function of torch that draws, whichever generator it is given."""

    NAMES = frozenset(
        {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "normal_"}
        | {"uniform_", "bernoulli", "bernoulli_", "exponential_", "cauchy_", "log_normal_", "geometric_", "random_"}
        | {"multinomial", "poisson", "dropout", "manual_seed"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, function, types, arguments=(), named=None):  # type: ignore[no-untyped-def]
        if getattr(function, "__name__", "") in self.NAMES:
            self.seen.append(function.__name__)
        return function(*arguments, **(named or {}))


def states() -> tuple[object, ...]:
    """Of numpy's and torch's own generators. Python's ``random`` is what the type checker of these tests draws on."""
    return str(np.random.get_state()), torch.random.get_rng_state().tolist()


@pytest.mark.parametrize("name", ["dp-sgd", "dpzero", "lmo-dp"])
def test_s24_nothing_draws_on_torch_or_a_mersenne_twister_while_a_release_is_made(name: str) -> None:
    """``update-gaussian`` draws its batches by a seed, in the open: what it hides is the whole update."""
    tape = Draws()
    mechanism = next(row for row in ROWS if type(row) is MECHANISMS[name])
    attached = attached_adapter()
    way = mechanism.choose_way(attached, pad_token_id=0)
    task = private_task(attached, random_examples(5), way)
    before = states()
    with tape:
        mechanism.release(task, secret=SecretSource(), charge=lambda _: None, reporter=SilentReporter())
    assert tape.seen == []
    assert states() == before


def test_s24_the_trace_of_draws_sees_one() -> None:
    with Draws() as tape:
        torch.randn(2, generator=torch.Generator())
        torch.zeros(2).normal_()
    assert tape.seen == ["randn", "normal_"]


def autocorrelation_p(values: NDArray[np.float64]) -> float:
    """The p-value of no correlation at any of the first lags (Ljung and Box 1978)."""
    centred = values - values.mean()
    variance = float(centred @ centred)
    shares = [float(centred[lag:] @ centred[:-lag]) / variance for lag in range(1, LAGS + 1)]
    count = len(values)
    statistic = count * (count + 2) * sum(share**2 / (count - lag) for lag, share in enumerate(shares, 1))
    return float(stats.chi2.sf(statistic, LAGS))


LAWS: dict[str, tuple[Callable[[int], NDArray[np.float64]], stats.rv_continuous]] = {
    "uniform": (SecretSource().uniform, stats.uniform()),
    "normal": (SecretSource().normal, stats.norm()),
    "exponential": (SecretSource().exponential, stats.expon()),
    "gaussian noise": (lambda count: Gaussian(1.7).sample(SecretSource(), count), stats.norm(scale=1.7)),
    "laplace noise": (lambda count: Laplace(0.6).sample(SecretSource(), count), stats.laplace(scale=0.6)),
}


@pytest.mark.parametrize("law", LAWS)
def test_s24_a_million_draws_follow_their_law_and_no_draw_says_anything_of_the_next(law: str) -> None:
    """A right source fails one of these limits once in a thousand million, since a second million may answer for it."""
    draw, expected = LAWS[law]

    def least_p() -> float:
        values = draw(DRAWS)
        folded = np.abs(values - expected.mean())
        fit = stats.kstest(values, expected.cdf).pvalue
        return min(fit, autocorrelation_p(values), autocorrelation_p(folded))

    assert least_p() > LEAST_P or least_p() > LEAST_P
