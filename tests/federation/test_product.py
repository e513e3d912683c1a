"""The mean of products, factored again: against dense matrices and their singular value decomposition."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scaleot_core.errors import InputError
from scaleot_core.federation.product import mean_product, product_mean
from scaleot_core.shapes import TensorDict
from tests.support.aggregation_reference import literal_best_rank
from tests.support.updates import SHAPES, random_state

A, B = "1.q_proj.lora_A", "1.q_proj.lora_B"
WIDE = {A: (4, 48), B: (32, 4)}


def dense_mean(states: Sequence[TensorDict], weights: Sequence[int], pair: tuple[str, str] = (A, B)) -> Tensor:
    down, up = pair
    products = (
        weight * (state[up].double() @ state[down].double()) for state, weight in zip(states, weights, strict=True)
    )
    return sum(products, torch.zeros(())) / sum(weights)


def error(adapter: TensorDict, wanted: Tensor) -> float:
    return float((adapter[B].double() @ adapter[A].double() - wanted).norm() / wanted.norm())


def states_of_one_subspace(count: int, rank: int) -> list[TensorDict]:
    """Clients whose products share their columns' space, so that their mean has no more rank than each."""
    up = random_state(9, WIDE)[B][:, :rank]
    states = []
    for number in range(count):
        drawn = random_state(number, WIDE)
        mixing = random_state(number, {"m": (rank, 4)})["m"]
        states.append({A: drawn[A], B: up @ mixing})
    return states


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_a_mean_of_no_more_rank_than_the_adapter_s_comes_back_exactly(rank: int) -> None:
    states, weights = states_of_one_subspace(5, rank), [3, 1, 4, 1, 5]
    adapter, residual_share = product_mean(states, weights, random_state(50, WIDE))
    assert error(adapter, dense_mean(states, weights)) < 1e-6
    assert residual_share < 1e-7


@pytest.mark.parametrize("clients", [2, 5, 16])
def test_a_mean_of_more_rank_becomes_the_nearest_of_the_adapter_s_rank(clients: int) -> None:
    states, weights = [random_state(number, WIDE) for number in range(clients)], list(range(1, clients + 1))
    adapter, residual_share = product_mean(states, weights, random_state(50, WIDE))
    dense = dense_mean(states, weights)
    nearest = literal_best_rank(dense, 4)
    assert error(adapter, nearest) < 1e-6
    assert residual_share == pytest.approx(float((dense - nearest).norm() / dense.norm()), rel=1e-9)
    assert residual_share > 0.1


def test_it_is_nearer_to_the_mean_of_products_than_the_product_of_means_is() -> None:
    states, weights = [random_state(number, WIDE) for number in range(4)], [1] * 4
    dense = dense_mean(states, weights)
    means = {name: torch.stack([state[name] for state in states]).mean(0) for name in WIDE}
    assert error(product_mean(states, weights, states[0])[0], dense) < 0.8 * error(means, dense)


def test_clients_of_unequal_ranks_are_averaged_exactly() -> None:
    ranks, weights = (1, 2, 4, 7), (0.1, 0.2, 0.3, 0.4)
    drawn = [random_state(rank, {"A": (rank, 48), "B": (32, rank)}) for rank in ranks]
    dense = sum(w * (one["B"].double() @ one["A"].double()) for w, one in zip(weights, drawn, strict=True))
    for rank in (2, 14, 20):
        base = random_state(50, {"A": (rank, 48)})["A"]
        mean = mean_product([one["A"] for one in drawn], [one["B"] for one in drawn], weights, base)
        assert mean.down.shape == (rank, 48) and mean.up.shape == (32, rank)
        nearest = literal_best_rank(dense, rank)
        assert torch.allclose(mean.up @ mean.down, nearest, rtol=0, atol=1e-12)
        assert mean.residual_square == pytest.approx(float((dense - nearest).square().sum()), abs=1e-9)


def test_no_component_is_dead_where_the_mean_has_less_rank_than_the_adapter() -> None:
    states = states_of_one_subspace(3, 1)
    adapter, _ = product_mean(states, [1, 1, 1], random_state(50, WIDE))
    lengths = adapter[A].norm(dim=1)
    assert torch.allclose(lengths, lengths[0].expand(4), rtol=1e-5), "a row of A of no length would never be trained"
    assert float(lengths[0]) == pytest.approx(
        float(torch.cat([one[A] for one in states]).square().sum(1).mean().sqrt())
    )
    assert adapter[B].norm(dim=0).tolist()[1:] == pytest.approx([0, 0, 0], abs=1e-5)


def test_clients_that_trained_nothing_leave_a_product_of_nothing_and_an_a_that_learns() -> None:
    start = {A: random_state(1, WIDE)[A], B: torch.zeros(32, 4)}
    adapter, residual_share = product_mean([start] * 3, [1, 2, 3], start)
    assert residual_share == 0 and not adapter[B].any()
    assert torch.linalg.matrix_rank(adapter[A]) == 4
    nothing = {name: torch.zeros(shape) for name, shape in WIDE.items()}
    adapter, _ = product_mean([nothing] * 2, [1, 1], nothing)
    assert not adapter[B].any() and torch.linalg.matrix_rank(adapter[A]) == 4


def test_one_client_alone_and_equal_clients_keep_their_product() -> None:
    state = random_state(3, WIDE)
    for count in (1, 6):
        adapter, residual_share = product_mean([state] * count, [7] * count, random_state(50, WIDE))
        assert error(adapter, state[B].double() @ state[A].double()) < 1e-6
        assert residual_share < 1e-7


def test_an_adapter_of_more_rank_than_its_matrix_has_keeps_its_shape_and_the_whole_mean() -> None:
    shapes = {A: (6, 5), B: (4, 6)}
    states = [random_state(number, shapes) for number in range(3)]
    adapter, residual_share = product_mean(states, [1, 1, 1], random_state(50, shapes))
    assert {name: tuple(tensor.shape) for name, tensor in adapter.items()} == shapes
    assert error(adapter, dense_mean(states, [1, 1, 1])) < 1e-6
    assert residual_share == 0


def test_pairs_are_taken_by_name_and_the_residual_is_of_all_together() -> None:
    shapes = {
        "1.mlp.lora_A": (2, 8),
        "1.mlp.lora_B": (16, 2),
        **SHAPES,
        "11.q_proj.lora_A": (2, 8),
        "11.q_proj.lora_B": (8, 2),
    }
    states, base = [random_state(number, shapes) for number in range(4)], random_state(50, shapes)
    adapter, residual_share = product_mean(states, [1] * 4, base)
    assert list(adapter) == list(base)
    square = residual_square = 0.0
    for name in ("1.mlp", "1.q_proj", "11.q_proj"):
        pair = (f"{name}.lora_A", f"{name}.lora_B")
        dense = dense_mean(states, [1] * 4, pair)
        nearest = literal_best_rank(dense, 2)
        assert torch.allclose((adapter[pair[1]] @ adapter[pair[0]]).double(), nearest, atol=1e-5)
        square += float(dense.square().sum())
        residual_square += float((dense - nearest).square().sum())
    assert residual_share == pytest.approx((residual_square / square) ** 0.5)


@pytest.mark.parametrize("shapes", [{A: (2, 8)}, {B: (8, 2)}, {**SHAPES, "1.q_proj.weight": (8, 8)}])
def test_what_has_no_product_is_refused(shapes: dict[str, tuple[int, ...]]) -> None:
    state = random_state(0, shapes)
    with pytest.raises(InputError, match="pairs of LoRA's A and B"):
        product_mean([state], [1], state)


@given(seed=st.integers(0, 10_000), power=st.integers(-12, 12), clients=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_moving_scale_from_a_to_b_changes_nothing_and_scaling_b_scales_the_mean(
    seed: int, power: int, clients: int
) -> None:
    states = [random_state(seed + number, WIDE) for number in range(clients)]
    base, weights, factor = random_state(seed + 99, WIDE), [1] * clients, 2.0**power
    wanted = literal_best_rank(dense_mean(states, weights), 4)
    moved = [{A: state[A] * factor, B: state[B] / factor} for state in states]
    assert error(product_mean(moved, weights, base)[0], wanted) < 1e-5
    larger = [{A: state[A], B: state[B] * factor} for state in states]
    assert error(product_mean(larger, weights, base)[0], wanted * factor) < 1e-5
