from typing import Literal

import numpy as np
import pytest
import torch
from scipy import stats

from scaleot_core.errors import InputError
from scaleot_core.privacy.discrete_gaussian import CELLS_PER_UNIT
from scaleot_core.privacy.dpzero import DPZero
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.release import LocalTask
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.progress import SilentReporter
from tests.support.privacy_reference import mean_target_loss
from tests.support.private_tasks import ADAPTERS, FORWARD, attached_adapter, private_task, random_examples, zeroth_order

Noise = Literal["discrete-gaussian", "gaussian"]


def empty() -> LocalTask:
    return private_task(attached_adapter(), [], FORWARD)


def without_differences() -> LocalTask:
    """A task whose loss is the same whatever the adapter: the head sees nothing."""
    attached = attached_adapter()
    with torch.no_grad():
        attached.model.get_output_embeddings().weight.zero_()
    return private_task(attached, random_examples(4), FORWARD)


def scalars_of(mechanism: DPZero, task: LocalTask) -> np.ndarray:  # type: ignore[type-arg]
    release = mechanism.release(task, secret=SecretSource(), charge=lambda event: None, reporter=SilentReporter())
    return release.tensors["scalars"].numpy()


@pytest.mark.parametrize("noise", ["discrete-gaussian", "gaussian"])
def test_the_noise_has_the_promised_law(noise: Noise) -> None:
    mechanism = DPZero(zeroth_order(steps=6, num_directions=200, sample_rate=1.0), noise_multiplier=1.5, noise=noise)
    drawn = scalars_of(mechanism, empty()).flatten() / CELLS_PER_UNIT
    assert stats.kstest(drawn / 1.5, "norm").pvalue > 1e-6
    assert drawn.shape == (1200,)


def test_examples_without_differences_release_the_noise_alone() -> None:
    mechanism = DPZero(zeroth_order(num_directions=30, steps=1, sample_rate=1.0), noise_multiplier=2.0)
    drawn = np.concatenate([scalars_of(mechanism, without_differences())[0] for _ in range(6)])
    assert stats.kstest(drawn / CELLS_PER_UNIT / 2.0, "norm").pvalue > 1e-6


@pytest.mark.parametrize("noise", ["discrete-gaussian", "gaussian"])
def test_public_seeds_and_the_directions_key_do_not_repeat_the_noise(noise: Noise) -> None:
    """The published code of DPZero fails here: its noise follows from the direction seed."""
    mechanism = DPZero(zeroth_order(steps=1, num_directions=100), noise_multiplier=1.0, noise=noise)
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        found.append(scalars_of(mechanism, empty())[0])
    assert abs(np.corrcoef(found[0], found[1])[0, 1]) < 0.6


def test_an_empty_poisson_batch_still_releases_noise() -> None:
    scalars = scalars_of(DPZero(zeroth_order(), noise_multiplier=1.0), empty())
    assert scalars.shape == (3, 4)
    assert np.count_nonzero(scalars) >= 11
    assert scalars.dtype == np.int32


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_tuning_with_little_noise_lowers_the_loss(adapter: str) -> None:
    attached = attached_adapter("llama", adapter)
    examples = random_examples(4)
    settings = zeroth_order(
        steps=15, num_directions=8, sample_rate=1.0, expected_batch_size=4.0, max_grad_norm=10.0, learning_rate=0.03
    )
    task = private_task(attached, examples)
    before = mean_loss(task)
    scalars_of(DPZero(settings, noise_multiplier=0.1), task)
    assert mean_loss(task) < before - 0.02
    assert all(parameter.grad is None for parameter in attached.trainable().values())


def mean_loss(task: LocalTask) -> float:
    with torch.no_grad():
        return sum(float(mean_target_loss(task.attached.model, one)) for one in task.examples) / len(task.examples)


def test_values_beyond_int32_are_brought_to_its_ends() -> None:
    mechanism = DPZero(zeroth_order(num_directions=50, steps=1), noise_multiplier=1e6)
    scalars = scalars_of(mechanism, empty())
    assert int(np.abs(scalars.astype(np.int64)).max()) == 2**31 - 1
    assert set(np.sign(scalars).flatten().tolist()) == {-1, 1}


def test_a_step_does_not_need_a_gradient_graph() -> None:
    attached = attached_adapter()
    made = []
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output: made.append(output.requires_grad))
        for module in attached.model.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    DPZero(zeroth_order(sample_rate=1.0), 1.0).step(private_task(attached, random_examples(2)), 0, SecretSource())
    for handle in handles:
        handle.remove()
    assert made
    assert not any(made)


def test_the_event_says_what_a_round_costs() -> None:
    assert DPZero(zeroth_order(), 1.5).event() == PrivacyEvent(
        "discrete-gaussian", {"noise_multiplier": 1.5, "cells_per_unit": 65536.0}, sample_rate=0.5, count=3
    )
    assert DPZero(zeroth_order(), 1.5, "gaussian").event() == PrivacyEvent(
        "gaussian", {"noise_multiplier": 1.5}, sample_rate=0.5, count=3
    )


def test_a_noise_multiplier_of_zero_is_refused() -> None:
    with pytest.raises(InputError):
        DPZero(zeroth_order(), noise_multiplier=0.0)
