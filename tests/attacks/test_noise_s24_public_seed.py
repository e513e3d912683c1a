"""S24, the fault itself, as DPZero's published code has it: noise from a generator that was just seeded in public.

Whoever knows the seed of the directions subtracts the noise. The audit finds it: right sampling, right clipping, a
right account of epsilon 1, and no privacy.
"""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from scaleot_core.privacy.audit import repeated_noise
from scaleot_core.privacy.canaries import canary_task
from scaleot_core.privacy.release import LocalTask
from scaleot_core.privacy.secret_random import Coins, SecretSource
from scaleot_core.privacy.zeroth_order import sum_clipped_cells
from tests.support.audits import audited_dp_sgd, audited_dpzero, run_audit

PUBLIC_SEED = 7


class SeededSource(SecretSource):
    """A source whose noise follows from the public seed; its coins for samples are secret, as in the published code."""

    __slots__ = ("_generator",)

    def __init__(self) -> None:
        self._generator = np.random.Generator(np.random.Philox(PUBLIC_SEED))

    def words(self, count: int) -> NDArray[np.uint64]:
        return self._generator.integers(0, 2**64, size=count, dtype=np.uint64)

    def integer_below(self, bound: int) -> int:
        return int.from_bytes(self._generator.bytes(64), "little") % bound

    def coins(self, probability: float, count: int) -> Coins:
        return SecretSource().coins(probability, count)


class GlobalSource(SeededSource):
    """A source that draws on PyTorch's own generator, as ``torch.randn`` does after ``torch.manual_seed``."""

    __slots__ = ()

    def words(self, count: int) -> NDArray[np.uint64]:
        halves = torch.randint(2**32, (2, count)).numpy().astype(np.uint64)
        return (halves[0] << np.uint64(32)) | halves[1]

    def integer_below(self, bound: int) -> int:
        return int.from_bytes(self.words(8).tobytes(), "little") % bound


class NumpySource(GlobalSource):
    """The same of NumPy's own generator, after ``numpy.random.seed``."""

    __slots__ = ()

    def words(self, count: int) -> NDArray[np.uint64]:
        return np.random.randint(2**64, size=count, dtype=np.uint64)


class PythonSource(GlobalSource):
    """The same of Python's own generator, after ``random.seed``."""

    __slots__ = ()

    def words(self, count: int) -> NDArray[np.uint64]:
        return np.array([random.getrandbits(64) for _ in range(count)], dtype=np.uint64)


@pytest.mark.parametrize("make_secret", [NumpySource, PythonSource])
def test_s24_noise_from_any_public_generator_refutes_the_claim(make_secret: Callable[[], SecretSource]) -> None:
    found = run_audit(audited_dp_sgd(60), 60, make_secret)
    assert found.noise_repeats and found.refutes_the_claim
    assert not run_audit(audited_dp_sgd(60), 60, SecretSource).noise_repeats


def test_s24_the_public_generators_are_left_as_they_were() -> None:
    mechanism = audited_dp_sgd(20)
    task = canary_task(mechanism, 20)
    before = (np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist())
    repeated_noise(mechanism, task, NumpySource)
    assert before == (np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist())


@pytest.mark.parametrize("make_secret", [SeededSource, GlobalSource])
def test_s24_a_build_with_noise_from_a_public_seed_fails_at_epsilon_1_with_a_thousand_canaries(
    make_secret: Callable[[], SecretSource],
) -> None:
    found = run_audit(audited_dp_sgd(1000), 1000, make_secret)
    assert found.claimed_epsilon == pytest.approx(1.0, rel=1e-3)
    assert found.noise_repeats and found.right == found.guesses == 200
    assert found.refutes_the_claim and found.lower_bound == found.most > 4


def test_s24_such_a_build_of_dpzero_fails_too() -> None:
    found = run_audit(audited_dpzero(250), 250, SeededSource)
    assert found.noise_repeats and found.refutes_the_claim


def test_s24_secret_samples_do_not_make_up_for_noise_from_a_public_seed() -> None:
    found = run_audit(audited_dp_sgd(400, sample_rate=0.5), 400, SeededSource)
    assert found.noise_repeats and found.refutes_the_claim


def test_s24_the_attacker_reads_the_sum_itself_off_a_step() -> None:
    mechanism = audited_dpzero(40)
    task = canary_task(mechanism, 40)
    released = mechanism.step(task, 0, SeededSource())["scalars"].numpy()
    nothing = LocalTask(task.attached, (), task.pad_token_id, task.way)
    noise = mechanism.step(nothing, 0, SeededSource())["scalars"].numpy()
    exact = sum_clipped_cells(mechanism.zeroth_order, "L2", task, task.examples, 0)
    assert noise.any() and exact.any()
    assert np.array_equal(released - noise, exact)


@pytest.mark.slow
def test_s24_such_a_build_of_dpzero_fails_with_a_thousand_canaries() -> None:
    found = run_audit(audited_dpzero(1000), 1000, SeededSource)
    assert found.noise_repeats and found.refutes_the_claim
