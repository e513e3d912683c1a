import gc
import weakref

import pytest
import torch

from scaleot_core.adapters.adapter import AttachedAdapter
from scaleot_core.errors import ModelError
from scaleot_core.privacy.per_example import ExampleWay, gradients_of
from scaleot_core.training.data import EncodedExample
from tests.support.privacy_reference import example_gradient
from tests.support.private_tasks import ADAPTERS, FORWARD, HOOKS, LOOP, attached_adapter, private_task, random_examples
from tests.support.tiny_models import FAMILY_CONFIGS

HOOKED = [adapter for adapter in ADAPTERS if adapter != "layers"]
RECOMPUTED = ExampleWay(1, uses_hooks=False, reason="asked for", recomputes_activations=True)


def gradients(attached: AttachedAdapter, examples: list[EncodedExample], way: ExampleWay) -> list[torch.Tensor]:
    """Each example's gradient as one vector, in the order of the examples."""
    rows = {}
    for batch in private_task(attached, [], way).physical_batches(examples):
        found = gradients_of(attached, batch, way)
        for row in range(batch.num_examples):
            key = tuple(batch.input_ids[row].tolist())
            rows[key] = torch.cat([found[name][row].double().flatten() for name in sorted(found)])
    return [next(rows[key] for key in rows if key[: len(one.token_ids)] == one.token_ids) for one in examples]


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
@pytest.mark.parametrize("adapter", HOOKED)
def test_hooks_give_the_gradients_of_plain_backward_on_every_family(model_type: str, adapter: str) -> None:
    attached = attached_adapter(model_type, adapter)
    examples = random_examples(5)
    for found, example in zip(gradients(attached, examples, HOOKS), examples, strict=True):
        expected = example_gradient(attached, example)
        assert float((found - expected).norm()) <= 1e-4 * float(expected.norm())


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_loop_gives_the_gradients_of_plain_backward_on_every_family(model_type: str, adapter: str) -> None:
    attached = attached_adapter(model_type, adapter)
    examples = random_examples(2)
    for found, example in zip(gradients(attached, examples, LOOP), examples, strict=True):
        expected = example_gradient(attached, example)
        assert float((found - expected).norm()) <= 1e-4 * float(expected.norm())


def test_recomputed_activations_give_the_loops_gradients() -> None:
    attached = attached_adapter()
    examples = random_examples(3)
    for found, expected in zip(
        gradients(attached, examples, RECOMPUTED), gradients(attached, examples, LOOP), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neither_place_nor_company_changes_a_bit_of_a_gradient(dtype: torch.dtype) -> None:
    attached = attached_adapter(dtype=dtype)
    example = random_examples(1, seed=9)[0]
    alone = gradients(attached, [example], HOOKS)[0]
    for seed in range(4):
        company = random_examples(7, seed=seed, lengths=(4, 60))
        company.insert(2 * seed, example)
        assert torch.equal(gradients(attached, company, HOOKS)[2 * seed], alone)


@pytest.mark.parametrize("way", [HOOKS, LOOP])
def test_model_and_parameters_come_back_as_they_were(way: ExampleWay) -> None:
    attached = attached_adapter()
    modes = {path: module.training for path, module in attached.model.named_modules()}
    attributes = {path: set(vars(module)) for path, module in attached.model.named_modules()}
    kept = {name: set(vars(parameter)) for name, parameter in attached.model.named_parameters()}
    state = attached.state()
    first = next(iter(attached.trainable().values()))
    first.grad = torch.ones_like(first)
    gradients(attached, random_examples(5), way)
    assert {path: module.training for path, module in attached.model.named_modules()} == modes
    assert {path: set(vars(module)) for path, module in attached.model.named_modules()} == attributes
    assert {name: set(vars(parameter)) for name, parameter in attached.model.named_parameters()} == kept
    for module in attached.model.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
    assert all(torch.equal(tensor, state[name]) for name, tensor in attached.state().items())
    grads = [parameter.grad for parameter in attached.trainable().values()]
    assert torch.equal(grads[0], torch.ones_like(first))  # type: ignore[arg-type]
    assert grads[1:] == [None] * (len(grads) - 1)


def test_a_broken_pass_leaves_no_hook() -> None:
    attached = attached_adapter()
    (batch,) = private_task(attached, [], HOOKS).physical_batches(random_examples(1))
    batch.labels[0, 0] = 10**6  # outside the vocabulary: the loss raises
    with pytest.raises((IndexError, RuntimeError)):
        gradients_of(attached, batch, HOOKS)
    assert not any(module._forward_hooks or module._backward_hooks for module in attached.model.modules())
    assert not any(hasattr(module, "activations") for module in attached.model.modules())


def test_a_sum_over_rows_is_never_taken_for_the_gradient_of_one() -> None:
    attached = attached_adapter()
    (batch,) = private_task(attached, [], HOOKS).physical_batches(random_examples(1))
    with pytest.raises(ModelError, match="one for each of 4 rows"):
        gradients_of(attached, batch, FORWARD)


@pytest.mark.parametrize("way", [HOOKS, LOOP])
def test_gradients_are_free_as_soon_as_they_are_dropped(way: ExampleWay) -> None:
    attached = attached_adapter()
    batch = next(private_task(attached, [], way).physical_batches(random_examples(3)))
    gc.disable()
    try:
        found = gradients_of(attached, batch, way)
        watched = [weakref.ref(tensor) for tensor in found.values()]
        del found
        assert [one for one in watched if one() is not None] == []
    finally:
        gc.enable()
