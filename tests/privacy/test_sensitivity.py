"""What every proof here rests on: one record more moves a sum by that record's own bounded term and nothing else."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from scaleot_core.adapters.adapter import AttachedAdapter
from scaleot_core.privacy.calibration import LMO_SHAPE
from scaleot_core.privacy.discrete_gaussian import CELLS_PER_UNIT
from scaleot_core.privacy.dp_sgd import sum_clipped_gradients
from scaleot_core.privacy.dpzero import DPZero
from scaleot_core.privacy.lmo_dp import LMODP
from scaleot_core.privacy.noise_ranges import Norm
from scaleot_core.privacy.per_example import ExampleWay
from scaleot_core.privacy.update_noise import UpdateGaussian
from scaleot_core.privacy.zeroth_order import sum_clipped_cells
from scaleot_core.training.data import EncodedExample, collate
from scaleot_core.training.local import LocalTraining, OptimizerName, target_loss
from tests.support.attacks import ForgottenNoise
from tests.support.privacy_reference import example_gradient
from tests.support.private_tasks import (
    ADAPTERS,
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
ROUNDING = 1 + 1e-6

SEEDS = {case: seed for seed, case in enumerate(product(FAMILY_CONFIGS, (torch.float32, torch.bfloat16)))}
"""Of the random data sets, for each family and type of its numbers."""

RECOMPUTED = replace(LOOP, recomputes_activations=True)
MODES = {
    "lora by hooks": ("lora", HOOKS),
    "lora by the loop": ("lora", LOOP),
    "lora, activations recomputed": ("lora", RECOMPUTED),
    "ffa-lora by hooks": ("ffa-lora", HOOKS),
    "ffa-lora by the loop": ("ffa-lora", LOOP),
    "bottleneck by hooks": ("bottleneck", HOOKS),
    "bottleneck by the loop": ("bottleneck", LOOP),
    "layers by the loop": ("layers", LOOP),
}
"""An adapter and a way to its examples' gradients: hooks see no whole layers."""

ZEROTH_ORDER = zeroth_order(max_grad_norm=1e-3, num_directions=2, smoothing=0.01)
DPZERO = DPZero(ZEROTH_ORDER, noise_multiplier=1.0)
LMO_DP = LMODP(ZEROTH_ORDER, {**LMO_SHAPE, "scale": 1.0})
SCALARS = {"dpzero by single rows": (DPZERO, 1), "dpzero by eight rows": (DPZERO, 8), "lmo-dp": (LMO_DP, 8)}
"""A mechanism and the rows of its forward passes."""

Sum = Callable[[list[EncodedExample]], Tensor]
"""What a mechanism makes of a sample before it adds noise, as one vector."""


@cache
def attached_once(model_type: str, adapter: str, dtype: torch.dtype = torch.float32) -> AttachedAdapter:
    """Returns what all tests may share: no sum leaves the adapter other than it was."""
    return attached_adapter(model_type, adapter, dtype=dtype)


def growing(seed: int) -> list[list[EncodedExample]]:
    """Returns data sets of no to four random examples: neighbours, as each is the last with one more anywhere in it.

    Three short ones come first, then a long one.
    """
    places = random.Random(seed)
    data_sets: list[list[EncodedExample]] = [[]]
    for record in random_examples(3, seed=seed, lengths=(4, 9)) + random_examples(1, seed=seed, lengths=(50, 65)):
        grown = data_sets[-1].copy()
        grown.insert(places.randint(0, len(grown)), record)
        data_sets.append(grown)
    return data_sets


def moves(total: Sum, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields by what each record moves the sum that it joins, and the sum of that record alone."""
    sums = [(examples, total(examples)) for examples in growing(seed)]
    for (less, before), (more, after) in pairwise(sums):
        yield after - before, total([one for one in more if one not in less])


def gradients(attached: AttachedAdapter, way: ExampleWay, bound: float = C) -> Sum:
    task = private_task(attached, [], way)
    return lambda examples: flat(sum_clipped_gradients(task, examples, bound))


def scalars(attached: AttachedAdapter, rows: int, norm: Norm, max_grad_norm: float = 1e-3) -> Sum:
    task = private_task(attached, [], ExampleWay(rows, uses_hooks=False, reason="asked for"))
    settings = replace(ZEROTH_ORDER, max_grad_norm=max_grad_norm)
    return lambda examples: torch.from_numpy(sum_clipped_cells(settings, norm, task, examples, 0))


def updates(attached: AttachedAdapter, optimizer: OptimizerName, max_update_norm: float = C) -> Sum:
    """Of a whole data set, whose one neighbour is the empty one: its update is nothing."""
    training = LocalTraining(steps=2, batch_size=2, learning_rate=0.1, optimizer=optimizer)
    mechanism = UpdateGaussian(training, seed=0, max_update_norm=max_update_norm, noise_multiplier=1.0)
    return lambda examples: flat(mechanism.step(private_task(attached, examples), 0, ForgottenNoise()))


def length(vector: Tensor, norm: Norm) -> float:
    return float(torch.linalg.vector_norm(vector.double(), int(norm[1])))


@pytest.mark.parametrize(("model_type", "dtype"), SEEDS)
@pytest.mark.parametrize("mode", MODES)
def test_a_record_moves_the_clipped_sum_by_its_own_gradient_alone(
    mode: str, model_type: str, dtype: torch.dtype
) -> None:
    adapter, way = MODES[mode]
    total = gradients(attached_once(model_type, adapter, dtype), way)
    for moved, own in moves(total, SEEDS[model_type, dtype]):
        assert length(moved, "L2") <= C * ROUNDING
        assert float((moved - own).abs().max()) <= 1e-13 * C
        assert length(own, "L2") >= 0.99 * C  # the bound is met: the test could fail


@pytest.mark.parametrize(
    ("adapter", "model_type", "dtype"),
    [(adapter, *case) for adapter in ADAPTERS for case in SEEDS if adapter == "lora" or case[1] == torch.float32],
)
@pytest.mark.parametrize("mechanism", SCALARS)
def test_a_record_moves_the_scalars_by_its_own_clipped_vector_exactly(
    mechanism: str, adapter: str, model_type: str, dtype: torch.dtype
) -> None:
    """And so by no more than the bound, in the norm that its noise is accounted for."""
    private, rows = SCALARS[mechanism]
    norm = private.event().law().norm
    total = scalars(attached_once(model_type, adapter, dtype), rows, norm)
    for moved, own in moves(total, SEEDS[model_type, dtype]):
        assert torch.equal(moved, own)
        assert 0.99 * CELLS_PER_UNIT <= length(moved, norm) <= CELLS_PER_UNIT


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_data_set_moves_the_update_by_at_most_the_bound(adapter: str, model_type: str) -> None:
    attached = attached_once(model_type, adapter)
    nothing, one_record, *_, four_records = growing(seed=0)
    rounds: list[tuple[list[EncodedExample], OptimizerName]] = [(one_record, "sgd"), (four_records, "adamw")]
    for examples, optimizer in rounds:
        total = updates(attached, optimizer)
        assert 0.99 * C <= length(total(examples) - total(nothing), "L2") <= C * ROUNDING


def unclipped_scalars(attached: AttachedAdapter) -> Sum:
    """In cells of the bound that they would have been clipped to."""
    total = scalars(attached, 8, "L2", max_grad_norm=1e3)
    return lambda examples: 1e6 * total(examples)


BROKEN: dict[str, tuple[Callable[[AttachedAdapter], Sum], Norm, float]] = {
    "gradients that are not clipped": (lambda attached: gradients(attached, HOOKS, bound=1e9), "L2", C),
    "scalars that are not clipped": (unclipped_scalars, "L2", CELLS_PER_UNIT),
    "scalars clipped in the L2 norm under noise for L1": (
        lambda attached: scalars(attached, 8, "L2"),
        LMO_DP.event().law().norm,
        CELLS_PER_UNIT,
    ),
    "an update that is not clipped": (lambda attached: updates(attached, "sgd", max_update_norm=1e9), "L2", C),
}
"""A sum, the norm that the noise is accounted for, and the bound that a record would have to keep."""


@pytest.mark.parametrize("variant", BROKEN)
def test_a_sum_of_terms_that_are_not_clipped_as_the_noise_asks_breaks_the_bound(variant: str) -> None:
    build, norm, bound = BROKEN[variant]
    assert max(length(moved, norm) for moved, _ in moves(build(attached_adapter()), seed=0)) > 1.05 * bound


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
    short, (long,) = random_examples(15, seed=1, lengths=(6, 7)), random_examples(1, seed=77, lengths=(100, 101))
    bound = max(float(example_gradient(attached, one).norm()) for one in short)
    without = clipped_sum_of_the_batch_mean(attached, short, bound)
    moved = clipped_sum_of_the_batch_mean(attached, [*short, long], bound) - without
    assert length(moved, "L2") > 1.2 * bound
    total = gradients(attached, LOOP, bound)
    assert length(total([*short, long]) - total(short), "L2") <= bound * ROUNDING
