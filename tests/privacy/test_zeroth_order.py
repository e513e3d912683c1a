import math

import numpy as np
import pytest
import torch

from scaleot_core.adapters.adapter import AttachedAdapter
from scaleot_core.errors import InputError
from scaleot_core.models.layout import layout_for
from scaleot_core.privacy.directions import direction
from scaleot_core.privacy.discrete_gaussian import CELLS_PER_UNIT
from scaleot_core.privacy.losses import example_losses
from scaleot_core.privacy.replay import flatten, replay
from scaleot_core.privacy.zeroth_order import example_differences, sum_clipped_cells, write_vector
from scaleot_core.training.data import EncodedExample
from tests.support.privacy_reference import dpzero_step, example_gradient, mean_target_loss
from tests.support.private_tasks import (
    ADAPTERS,
    FORWARD,
    LOOP,
    attached_adapter,
    private_task,
    random_examples,
    zeroth_order,
)
from tests.support.tiny_models import FAMILY_CONFIGS


def loss_at(attached: AttachedAdapter, x: torch.Tensor, example: EncodedExample) -> float:
    kept = flatten(attached.trainable())
    write_vector(attached, x.float().numpy())
    with torch.no_grad():
        loss = float(mean_target_loss(attached.model, example))
    write_vector(attached, kept)
    return loss


@pytest.mark.parametrize("max_grad_norm", [0.05, 40.0])
def test_one_direction_without_noise_is_a_step_of_the_papers_algorithm(max_grad_norm: float) -> None:
    attached = attached_adapter()
    examples = random_examples(5)
    settings = zeroth_order(
        num_directions=1, max_grad_norm=max_grad_norm, expected_batch_size=5.0, smoothing=0.01, learning_rate=0.5
    )
    cells = sum_clipped_cells(settings, "L2", private_task(attached, examples), examples, 0)
    moved = replay(attached.state(), cells[None].astype(np.float64), settings.scalar_steps)
    x = torch.from_numpy(flatten(attached.trainable())).double()
    u = torch.from_numpy(direction(settings.direction_key, step=0, index=0, size=len(x))).double()
    expected = dpzero_step(
        lambda at, example: loss_at(attached, at, example), x, examples, u, lam=0.01, c=max_grad_norm, alpha=0.5, z=0.0
    )
    step = float((expected - x).norm())
    assert step > 1e-3
    assert float((torch.from_numpy(flatten(moved)).double() - expected).norm()) < 2e-3 * step


def test_differences_approach_the_gradients_inner_product_with_each_direction() -> None:
    attached = attached_adapter()
    (example,) = random_examples(1)
    settings = zeroth_order(num_directions=6)
    found = example_differences(settings, private_task(attached, [example]), [example], 2)[0]
    gradient = example_gradient(attached, example).numpy()
    size = len(gradient)
    expected = [gradient @ direction(settings.direction_key, step=2, index=k, size=size) for k in range(6)]
    np.testing.assert_allclose(found, expected, atol=0.02 * np.linalg.norm(gradient))


def test_many_directions_estimate_the_gradient() -> None:
    attached = attached_adapter()
    (example,) = random_examples(1)
    bound = 2 * float(example_gradient(attached, example).norm())
    settings = zeroth_order(num_directions=150, max_grad_norm=bound, expected_batch_size=1.0, learning_rate=1.0)
    cells = sum_clipped_cells(settings, "L2", private_task(attached, [example]), [example], 0)
    moved = flatten(replay(attached.state(), cells[None].astype(np.float64), settings.scalar_steps))
    estimate = torch.from_numpy(flatten(attached.trainable()) - moved).double()
    gradient = example_gradient(attached, example)
    cosine = float(estimate @ gradient / estimate.norm() / gradient.norm())
    size = len(gradient)
    assert cosine == pytest.approx(math.sqrt(150 / (size + 150)), abs=0.1)
    assert float(estimate @ gradient / gradient.norm() ** 2) == pytest.approx(
        1.0, abs=0.4
    )  # not biased: a standard deviation is sqrt(2 / 150)


def test_the_norm_of_a_vector_is_about_the_gradients_whatever_the_number_of_directions() -> None:
    attached = attached_adapter()
    (example,) = random_examples(1)
    size = float(example_gradient(attached, example).norm())
    for count in (32, 96):
        settings = zeroth_order(num_directions=count)
        vector = example_differences(settings, private_task(attached, []), [example], 0)[0] / math.sqrt(count)
        assert np.linalg.norm(vector) == pytest.approx(size, rel=0.3)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_adapter_comes_back_exactly_without_a_gradient(adapter: str) -> None:
    attached = attached_adapter("llama", adapter)
    state = attached.state()
    example_differences(zeroth_order(smoothing=0.37), private_task(attached, []), random_examples(3), 0)
    assert all(torch.equal(tensor, state[name]) for name, tensor in attached.state().items())
    assert all(parameter.grad is None for parameter in attached.trainable().values())


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_the_layers_before_the_adapter_run_once_a_batch_and_change_no_bit(model_type: str) -> None:
    attached = attached_adapter(model_type, dtype=torch.bfloat16)
    settings, task, examples = zeroth_order(num_directions=3), private_task(attached, []), random_examples(9)
    batches = list(task.physical_batches(examples))
    adapter, expected = flatten(attached.trainable()), []
    for k in range(3):
        along = direction(settings.direction_key, step=0, index=k, size=adapter.size) * np.float32(settings.smoothing)
        losses = []
        for moved in (adapter + along, adapter - along):
            write_vector(attached, moved)
            with torch.inference_mode():
                each = [example_losses(attached.model, batch)[: batch.num_examples] for batch in batches]
            losses.append(torch.cat(each).double().numpy())
        expected.append((losses[0] - losses[1]) / (2 * settings.smoothing))
    write_vector(attached, adapter)
    calls = []
    linear = layout_for(attached.model.config).attention_linears[0]
    first = layout_for(attached.model.config).layer(attached.model, 0).get_submodule(linear)
    first.register_forward_hook(lambda *_: calls.append(1))
    found = example_differences(settings, task, examples, 0)
    np.testing.assert_array_equal(found, np.stack(expected, axis=1))
    assert np.abs(found).max() > 0
    assert len(calls) == len(batches) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_example_adds_the_same_integers_in_all_company(dtype: torch.dtype) -> None:
    attached = attached_adapter(dtype=dtype)
    settings, task = zeroth_order(), private_task(attached, [])
    example = random_examples(1, seed=9)[0]
    alone = sum_clipped_cells(settings, "L2", task, [example], 0)
    for seed in range(3):
        company = random_examples(6, seed=seed, lengths=(4, 60))
        with_it = sum_clipped_cells(settings, "L2", task, [*company[:seed], example, *company[seed:]], 0)
        assert (with_it - sum_clipped_cells(settings, "L2", task, company, 0)).tolist() == alone.tolist()


@pytest.mark.parametrize("norm", ["L1", "L2"])
def test_rounding_to_the_lattice_keeps_the_norms_bound(norm: str) -> None:
    attached = attached_adapter()
    settings = zeroth_order(max_grad_norm=1e-3)
    for example in random_examples(6):
        cells = sum_clipped_cells(settings, norm, private_task(attached, []), [example], 0)  # type: ignore[arg-type]
        bound = int(CELLS_PER_UNIT)
        size = int(np.abs(cells).sum()) if norm == "L1" else math.isqrt(int((cells**2).sum() - 1)) + 1
        assert 0.99 * bound < size <= bound


def test_an_example_that_is_not_finite_is_clipped_and_not_skipped() -> None:
    attached = attached_adapter()
    with torch.no_grad():
        attached.model.get_input_embeddings().weight[7] = math.nan
    good, bad = random_examples(2), EncodedExample((10, 7, 12, 13), 1)
    good = [EncodedExample(tuple(t if t != 7 else 8 for t in one.token_ids), one.target_start) for one in good]
    settings = zeroth_order()
    for way in (FORWARD, LOOP):
        task = private_task(attached, [], way)
        with_it = sum_clipped_cells(settings, "L2", task, [*good, bad], 0)
        without = sum_clipped_cells(settings, "L2", task, good, 0)
        assert (with_it - without).tolist() == [int(CELLS_PER_UNIT) // 2] * 4  # 1 / sqrt(4) each


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"max_grad_norm": 0.0},
        {"expected_batch_size": math.nan},
        {"learning_rate": -1.0},
        {"num_directions": 0},
        {"smoothing": math.inf},
        {"direction_key": 2**128},
        {"first_step": -1},
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(InputError, match="zeroth order"):
        zeroth_order(**changes)


def test_a_later_round_measures_along_the_directions_that_its_adapter_moves_along() -> None:
    attached, examples = attached_adapter(), random_examples(3)
    task = private_task(attached, examples)
    later = example_differences(zeroth_order(first_step=5), task, examples, 2)
    assert np.array_equal(later, example_differences(zeroth_order(), task, examples, 7))
    assert not np.array_equal(later, example_differences(zeroth_order(), task, examples, 2))
