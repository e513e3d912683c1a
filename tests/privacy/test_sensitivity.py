"""What every proof here rests on: one record more moves a sum by that record's own bounded term and nothing else."""

import numpy as np
import pytest
import torch
from torch import Tensor

from scaleot_core.adapters.adapter import AttachedAdapter
from scaleot_core.privacy.discrete_gaussian import CELLS_PER_UNIT
from scaleot_core.privacy.dp_sgd import sum_clipped_gradients
from scaleot_core.privacy.per_example import ExampleWay
from scaleot_core.privacy.zeroth_order import sum_clipped_cells
from scaleot_core.training.data import EncodedExample, collate
from scaleot_core.training.local import target_loss
from tests.support.privacy_reference import example_gradient
from tests.support.private_tasks import (
    ADAPTERS,
    FORWARD,
    HOOKS,
    LOOP,
    attached_adapter,
    flat,
    private_task,
    random_examples,
    zeroth_order,
)
from tests.support.tiny_models import FAMILY_CONFIGS

C = 0.01
"""Below the gradients' norms, so that every example is clipped."""

MODES = [(adapter, way) for adapter in ADAPTERS for way in (HOOKS, LOOP) if (adapter, way) != ("layers", HOOKS)]
LONG = random_examples(1, seed=77, lengths=(100, 101))[0]


def neighbours(seed: int) -> tuple[list[EncodedExample], list[EncodedExample]]:
    """Returns short examples, and the same with one more, short or long, somewhere among them."""
    short = random_examples(4, seed=seed, lengths=(4, 12))
    more = LONG if seed % 2 == 0 else random_examples(1, seed=seed + 50, lengths=(4, 12))[0]
    return short, [*short[: seed % 5], more, *short[seed % 5 :]]


def check_gradients(attached: AttachedAdapter, way: ExampleWay, seed: int) -> None:
    task = private_task(attached, [], way)
    less, more = neighbours(seed)
    (extra,) = [one for one in more if one not in less]
    difference = flat(sum_clipped_gradients(task, more, C)) - flat(sum_clipped_gradients(task, less, C))
    assert float(difference.norm()) <= C * (1 + 1e-6)
    own = flat(sum_clipped_gradients(task, [extra], C))
    assert float((difference - own).abs().max()) <= 1e-14 * len(more) * C
    assert float(own.norm()) >= 0.99 * C  # the bound is met: the test could fail


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
@pytest.mark.parametrize(("adapter", "way"), MODES)
def test_a_record_moves_the_clipped_sum_by_its_own_gradient_alone(
    model_type: str, adapter: str, way: ExampleWay
) -> None:
    check_gradients(attached_adapter(model_type, adapter), way, seed=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize(("adapter", "way"), [("lora", HOOKS), ("layers", LOOP)])
def test_it_does_so_for_random_neighbours_and_in_half_precision(
    adapter: str, way: ExampleWay, seed: int, dtype: torch.dtype
) -> None:
    check_gradients(attached_adapter("llama", adapter, dtype=dtype), way, seed)


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_record_moves_the_scalars_by_its_own_clipped_vector_exactly(model_type: str, adapter: str) -> None:
    task = private_task(attached_adapter(model_type, adapter), [], FORWARD)
    settings = zeroth_order(max_grad_norm=1e-3, num_directions=2, smoothing=0.01)
    less, more = neighbours(0)
    difference = sum_clipped_cells(settings, "L2", task, more, 0) - sum_clipped_cells(settings, "L2", task, less, 0)
    assert difference.tolist() == sum_clipped_cells(settings, "L2", task, [LONG], 0).tolist()
    assert 0.99 * CELLS_PER_UNIT <= float(np.linalg.norm(difference)) <= CELLS_PER_UNIT


def clipped_sum_of_the_batch_mean(attached: AttachedAdapter, examples: list[EncodedExample], bound: float) -> Tensor:
    """What comes of transformers' loss: each example's share of the mean over the tokens of the batch, clipped."""
    parameters = list(attached.trainable().values())
    tokens = sum(len(one.token_ids) - one.target_start for one in examples)
    total = torch.zeros(sum(parameter.numel() for parameter in parameters), dtype=torch.float64)
    for one in examples:
        loss = target_loss(attached.model, collate([one], 0, torch.device("cpu")))
        share = loss * (len(one.token_ids) - one.target_start) / tokens * len(examples)
        gradient = torch.cat([part.double().flatten() for part in torch.autograd.grad(share, parameters)])
        total += gradient * min(1.0, bound / float(gradient.norm()))
    return total


def test_the_mean_over_a_batchs_tokens_breaks_the_bound_and_so_is_not_used() -> None:
    attached = attached_adapter()
    short = random_examples(15, seed=1, lengths=(6, 7))
    bound = max(float(example_gradient(attached, one).norm()) for one in short)
    without = clipped_sum_of_the_batch_mean(attached, short, bound)
    moved = clipped_sum_of_the_batch_mean(attached, [*short, LONG], bound) - without
    assert float(moved.norm()) > 1.2 * bound
    task = private_task(attached, [], LOOP)
    difference = flat(sum_clipped_gradients(task, [*short, LONG], bound)) - flat(
        sum_clipped_gradients(task, short, bound)
    )
    assert float(difference.norm()) <= bound * (1 + 1e-6)
