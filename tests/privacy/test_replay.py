from fractions import Fraction

import numpy as np
import pytest
import torch

from scaleot_core.errors import InputError
from scaleot_core.privacy.directions import direction, direction_key
from scaleot_core.privacy.dpzero import DPZero
from scaleot_core.privacy.replay import ScalarSteps, flatten, mean_scalars, replay, unflatten
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.progress import SilentReporter
from tests.support.private_tasks import FORWARD, attached_adapter, private_task, random_examples, zeroth_order

STEPS = ScalarSteps(direction_key("replay"), first_step=4, scale=1e-6)


def adapter() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(3, size, generator=generator) for name, size in (("b", 5), ("a", 7))}


def test_the_server_rebuilds_the_adapters_of_three_clients_bit_for_bit_after_fifty_steps() -> None:
    """Of a round that is not the first."""
    settings = zeroth_order(steps=50, num_directions=2, sample_rate=0.3, learning_rate=0.1, first_step=100)
    start = attached_adapter().state()
    for client in range(3):
        attached = attached_adapter()
        task = private_task(attached, random_examples(6, seed=client), FORWARD)
        release = DPZero(settings, noise_multiplier=0.5).release(
            task, secret=SecretSource(), charge=lambda event: None, reporter=SilentReporter()
        )
        rebuilt = replay(start, release.tensors["scalars"].numpy(), settings.scalar_steps)
        assert rebuilt.keys() == start.keys()
        assert all(torch.equal(tensor, attached.state()[name]) for name, tensor in rebuilt.items())
        assert not torch.equal(rebuilt["1.mlp.down_proj.lora_A"], start["1.mlp.down_proj.lora_A"])


def test_the_replay_of_the_mean_is_the_mean_of_the_adapters_up_to_float32_rounding() -> None:
    generator = np.random.default_rng(0)
    clients = [generator.integers(-(10**5), 10**5, (20, 8)).astype(np.int32) for _ in range(3)]
    weights = [5, 1, 3]
    start = adapter()
    averaged = replay(start, mean_scalars(clients, weights), STEPS)
    adapters = [replay(start, scalars, STEPS) for scalars in clients]
    for name in start:
        mean = sum(w * one[name].double() for w, one in zip(weights, adapters, strict=True)) / sum(weights)
        rounding = 20 * 8 * 2.0**-24 * float(start[name].abs().max() + 10)
        assert float((averaged[name].double() - mean).abs().max()) < rounding
        assert float((averaged[name] - start[name]).abs().max()) > 100 * rounding


def test_a_step_is_one_multiplication_and_one_subtraction_each_rounded_once() -> None:
    start = {"w": torch.tensor([1.5, -0.25, 3.0])}
    along = direction(STEPS.direction_key, step=4, index=0, size=3)
    moved = replay(start, np.array([[12345]], dtype=np.int32), STEPS)["w"]
    coefficient = Fraction(float(np.float32(STEPS.scale * 12345)))
    for value, z, got in zip(start["w"].tolist(), along.tolist(), moved.tolist(), strict=True):
        product = Fraction(float(np.float32(float(coefficient * Fraction(z)))))  # exact in float64, then rounded
        assert got == float(np.float32(float(Fraction(value) - product)))


def test_rounds_one_after_another_are_one_long_round() -> None:
    scalars = np.arange(-12, 12, dtype=np.int32).reshape(6, 4) * 1000
    later = ScalarSteps(STEPS.direction_key, STEPS.first_step + 2, STEPS.scale)
    whole = replay(adapter(), scalars, STEPS)
    parts = replay(replay(adapter(), scalars[:2], STEPS), scalars[2:], later)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_replay_leaves_the_adapter_it_starts_from() -> None:
    start = adapter()
    replay(start, np.full((2, 2), 10**6, dtype=np.int32), STEPS)
    assert all(torch.equal(start[name], tensor) for name, tensor in adapter().items())


def test_vectors_are_in_the_order_of_names_and_come_back() -> None:
    vector = flatten(adapter())
    assert vector.tolist() == torch.cat([adapter()["a"].flatten(), adapter()["b"].flatten()]).tolist()
    assert all(torch.equal(tensor, adapter()[name]) for name, tensor in unflatten(vector, adapter()).items())


def test_the_mean_is_exact_where_float64_can_say_it() -> None:
    most = np.array([[2**31 - 1]], dtype=np.int32)
    assert mean_scalars([most, most], [2**20, 2**20]).tolist() == [[2.0**31 - 1]]


def test_the_mean_of_the_greatest_scalars_and_weights_does_not_wrap_around() -> None:
    most = np.array([[2**31 - 1, -(2**31)]], dtype=np.int32)
    assert mean_scalars([most, most], [2**32, 2**32]).tolist() == [[2.0**31 - 1, -(2.0**31)]]


@pytest.mark.parametrize("scalars", [np.zeros(3), np.array([[np.nan]]), np.array([[np.inf]])])
def test_scalars_that_are_none_are_refused(scalars: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(InputError, match="scalars"):
        replay(adapter(), scalars, STEPS)


@pytest.mark.parametrize(
    ("shapes", "weights"), [([], []), ([(1, 2), (1, 3)], [1, 1]), ([(1, 2)], [0]), ([(1, 2), (1, 2)], [1, -1])]
)
def test_a_mean_of_nothing_or_of_unlike_scalars_is_refused(shapes: list[tuple[int, int]], weights: list[int]) -> None:
    with pytest.raises(InputError, match="scalars"):
        mean_scalars([np.zeros(shape, dtype=np.int32) for shape in shapes], weights)
