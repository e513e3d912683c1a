import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from scaleot_core.errors import InputError
from scaleot_core.privacy.dp_sgd import DPSGD, sum_clipped_gradients
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.per_example import ExampleWay
from scaleot_core.privacy.release import LocalTask
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.progress import SilentReporter
from scaleot_core.training.data import EncodedExample
from tests.support.privacy_reference import dp_sgd_clipped_sum, mean_target_loss
from tests.support.private_tasks import (
    ADAPTERS,
    HOOKS,
    LOOP,
    attached_adapter,
    flat,
    private_task,
    random_examples,
)


def dp_sgd(**changes: object) -> DPSGD:
    values = {
        "steps": 3,
        "sample_rate": 0.5,
        "expected_batch_size": 8.0,
        "max_grad_norm": 0.5,
        "noise_multiplier": 1.5,
        "learning_rate": 0.1,
    }
    return DPSGD(**{**values, **changes})  # type: ignore[arg-type]


def without_gradient() -> LocalTask:
    """A task whose loss is the same whatever the adapter: the head sees nothing."""
    attached = attached_adapter()
    with torch.no_grad():
        attached.model.get_output_embeddings().weight.zero_()
    return private_task(attached, random_examples(8), HOOKS)


def empty() -> LocalTask:
    return private_task(attached_adapter(), [], HOOKS)


@pytest.mark.parametrize("way", [HOOKS, LOOP])
@pytest.mark.parametrize("max_grad_norm", [0.5, 20.0])
def test_the_clipped_sum_is_the_papers(way: ExampleWay, max_grad_norm: float) -> None:
    attached = attached_adapter()
    examples = random_examples(7)
    expected = dp_sgd_clipped_sum(attached, examples, max_grad_norm)
    found = flat(sum_clipped_gradients(private_task(attached, [], way), examples, max_grad_norm))
    assert float((found - expected).norm()) < 1e-4 * float(expected.norm())


@pytest.mark.parametrize("task", [without_gradient, empty])
def test_the_noise_is_normal_with_the_promised_deviation(task: Callable[[], LocalTask]) -> None:
    mechanism = dp_sgd()
    noise = torch.cat([flat(mechanism.step(task(), index, SecretSource())) for index in range(4)]).numpy()
    assert stats.kstest(noise / (1.5 * 0.5), "norm").pvalue > 1e-6
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 6 / len(noise) ** 0.5


def test_public_seeds_do_not_repeat_the_noise() -> None:
    task, found = without_gradient(), []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        found.append(flat(dp_sgd().step(task, 0, SecretSource())))
    assert abs(float(np.corrcoef(found[0], found[1])[0, 1])) < 6 / len(found[0]) ** 0.5


def test_the_global_generators_are_not_drawn_from() -> None:
    task = private_task(attached_adapter(), random_examples(6), HOOKS)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    release_of(dp_sgd(), task)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index,union-attr]


def release_of(mechanism: DPSGD, task: LocalTask) -> dict[str, torch.Tensor]:
    return mechanism.release(task, secret=SecretSource(), charge=lambda event: None, reporter=SilentReporter()).tensors


def test_an_empty_poisson_batch_still_releases_noise() -> None:
    task = empty()
    before = task.attached.state()
    released = release_of(dp_sgd(steps=1, optimizer="sgd"), task)
    moved = (flat(released) - flat(before)) / (0.1 * 1.5 * 0.5 / 8.0)  # in units of the noise
    assert stats.kstest(moved.numpy(), "norm").pvalue > 1e-6


def test_the_divisor_is_the_public_expected_batch_size_and_not_the_samples() -> None:
    attached = attached_adapter()
    examples = random_examples(6)
    total = flat(sum_clipped_gradients(private_task(attached, [], HOOKS), examples, 0.5))
    before = attached.state()
    mechanism = dp_sgd(steps=1, sample_rate=1.0, expected_batch_size=100.0, noise_multiplier=0.1, optimizer="sgd")
    moved = flat(before) - flat(release_of(mechanism, private_task(attached, examples, HOOKS)))
    noise = moved * 100.0 / 0.1 - total
    assert stats.kstest((noise / (0.1 * 0.5)).numpy(), "norm").pvalue > 1e-6
    assert float(total.norm()) > 10 * 0.1 * 0.5  # without it the noise would not be centred


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("way", [HOOKS, LOOP])
def test_an_example_that_is_not_finite_is_clipped_and_not_skipped(way: ExampleWay, bad: float) -> None:
    attached = attached_adapter()
    with torch.no_grad():
        attached.model.get_input_embeddings().weight[7] = bad
    good = [EncodedExample((10, 11, 12, 13), 1), EncodedExample((20, 21, 22, 23), 2)]
    task = private_task(attached, [], way)
    without = flat(sum_clipped_gradients(task, good, 0.5))
    with_it = flat(sum_clipped_gradients(task, [good[0], EncodedExample((10, 7, 12, 13), 1), good[1]], 0.5))
    torch.testing.assert_close(with_it - without, torch.full_like(without, 0.5 / len(without) ** 0.5))


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_tuning_with_little_noise_lowers_the_loss(adapter: str, optimizer: str) -> None:
    attached = attached_adapter("llama", adapter)
    examples = random_examples(12)
    mechanism = dp_sgd(
        steps=12,
        noise_multiplier=0.1,
        max_grad_norm=5.0,
        learning_rate=0.03 if optimizer == "adamw" else 0.2,
        optimizer=optimizer,
        sample_rate=1.0,
        expected_batch_size=12.0,
    )
    way = mechanism.choose_way(attached, pad_token_id=0)
    task = private_task(attached, examples, way)
    before = mean_loss(task)
    released = release_of(mechanism, task)
    assert mean_loss(task) < before - 0.03
    assert all(torch.equal(tensor, released[name]) for name, tensor in attached.state().items())
    assert all(parameter.grad is None for parameter in attached.trainable().values())


def mean_loss(task: LocalTask) -> float:
    with torch.no_grad():
        return sum(float(mean_target_loss(task.attached.model, one)) for one in task.examples) / len(task.examples)


def test_a_frozen_a_stays_as_the_seed_made_it() -> None:
    attached = attached_adapter("llama", "ffa-lora")
    before = attached.whole_state()
    released = release_of(dp_sgd(), private_task(attached, random_examples(6), HOOKS))
    assert all(name.endswith("lora_B") for name in released)
    frozen = [name for name in before if name.endswith("lora_A")]
    assert frozen
    assert all(torch.equal(before[name], attached.whole_state()[name]) for name in frozen)


def test_the_event_says_what_a_round_costs() -> None:
    assert dp_sgd().event() == PrivacyEvent("gaussian", {"noise_multiplier": 1.5}, sample_rate=0.5, count=3)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"sample_rate": 0.0},
        {"sample_rate": 1.1},
        {"expected_batch_size": 0.0},
        {"max_grad_norm": math.nan},
        {"noise_multiplier": 0.0},
        {"learning_rate": math.inf},
        {"rows": 0},
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(InputError):
        dp_sgd(**changes)
