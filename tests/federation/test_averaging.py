import itertools
import tracemalloc
from collections.abc import Iterator

import pytest
import torch

from scaleot_core.adapters.adapter import AdapterKind, AdapterSpec
from scaleot_core.errors import InputError, RoundFailedError
from scaleot_core.federation.averaging import Aggregation, FederationState, advance, check_aggregation
from scaleot_core.federation.validation import AdapterUpdate
from scaleot_core.shapes import TensorDict
from tests.support.updates import random_state


def update(client: str, num_examples: int, state: TensorDict, loss: float = 1.0) -> AdapterUpdate:
    return AdapterUpdate(client, num_examples, loss, state)


def test_the_mean_is_weighted_by_examples() -> None:
    states = [random_state(i) for i in (1, 2, 3)]
    weights = (1, 10, 100)
    outcome = advance(
        FederationState(0, random_state(0)),
        [update(f"c{w}", w, s, loss=float(w)) for w, s in zip(weights, states, strict=True)],
    )
    for name, mean in outcome.state.adapter.items():
        literal = sum(w * s[name].double() for w, s in zip(weights, states, strict=True)) / 111
        assert torch.equal(mean, literal.float())
    assert outcome.train_loss == pytest.approx((1 + 100 + 10_000) / 111)
    assert outcome.clients == ("c1", "c10", "c100")
    assert outcome.state.rounds_done == 1


def test_one_update_alone_becomes_the_adapter_bit_for_bit() -> None:
    state = random_state(4)
    outcome = advance(FederationState(7, random_state(0)), [update("a", 12_345, state)])
    assert all(torch.equal(outcome.state.adapter[name], state[name]) for name in state)
    assert outcome.state.rounds_done == 8


def test_advance_changes_neither_state_nor_updates() -> None:
    base, state = random_state(0), random_state(1)
    kept = {name: tensor.clone() for name, tensor in (base | state).items()}
    advance(FederationState(0, base), [update("a", 3, state)])
    assert all(torch.equal((base | state)[name], kept[name]) for name in kept)


def test_equal_updates_in_equal_order_give_the_same_bits() -> None:
    updates = [update(str(i), i + 1, random_state(i)) for i in range(20)]
    first = advance(FederationState(0, random_state(0)), updates).state.adapter
    again = advance(FederationState(0, random_state(0)), updates).state.adapter
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_no_update_fails_the_round() -> None:
    with pytest.raises(RoundFailedError, match="round 5"):
        advance(FederationState(4, random_state(0)), [])


def test_ffa_averages_the_products_exactly() -> None:
    down = random_state(9, {"A": (4, 32)})["A"].double()
    ups = [random_state(i, {"B": (32, 4)}) for i in range(5)]
    weights = (3, 1, 4, 1, 5)
    mean = advance(
        FederationState(0, {"B": torch.zeros(32, 4)}),
        [update(str(i), w, up) for i, (w, up) in enumerate(zip(weights, ups, strict=True))],
    ).state.adapter["B"]
    products = sum(w * (up["B"].double() @ down) for w, up in zip(weights, ups, strict=True)) / sum(weights)
    assert torch.allclose(mean.double() @ down, products, rtol=0, atol=1e-5)


def test_averaging_both_factors_is_not_averaging_the_product() -> None:
    states = [random_state(i, {"A": (4, 32), "B": (32, 4)}) for i in range(4)]
    mean = advance(
        FederationState(0, states[0]), [update(str(i), 1, state) for i, state in enumerate(states)]
    ).state.adapter
    products = sum(state["B"] @ state["A"] for state in states) / 4
    assert float((mean["B"] @ mean["A"] - products).norm() / products.norm()) > 0.1


@pytest.mark.parametrize(
    ("aggregation", "freezes_down", "fits"),
    [("fedavg", False, True), ("fedavg", True, False), ("ffa", True, True), ("ffa", False, False)],
)
def test_ffa_goes_with_a_frozen_down_projection_only(aggregation: str, freezes_down: bool, fits: bool) -> None:
    spec = AdapterSpec(AdapterKind.LORA, (0,), 2, seed=0, freezes_down=freezes_down)
    if fits:
        check_aggregation(Aggregation(aggregation), spec)
    else:
        with pytest.raises(InputError, match="LoRA's A"):
            check_aggregation(Aggregation(aggregation), spec)


def test_memory_does_not_grow_with_the_number_of_updates() -> None:
    shapes = {"w": (256, 1024)}  # 1 MiB

    def updates(count: int) -> Iterator[AdapterUpdate]:
        return (update(str(i), 1, {"w": torch.from_numpy(_numpy_noise(i, shapes["w"]))}) for i in range(count))

    def peak_bytes(count: int) -> int:
        tracemalloc.start()
        advance(FederationState(0, {"w": torch.zeros(shapes["w"])}), updates(count))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    few, many = peak_bytes(2), peak_bytes(32)
    assert many < few + 1024 * 1024, (few, many)


def _numpy_noise(seed: int, shape: tuple[int, ...]):  # numpy reports its memory to tracemalloc, torch does not
    import numpy as np

    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def test_updates_are_taken_one_by_one() -> None:
    alive: list[int] = []

    def updates() -> Iterator[AdapterUpdate]:
        for i in itertools.count():
            if i == 5:
                return
            alive.append(i)
            yield update(str(i), 1, random_state(i))

    assert advance(FederationState(0, random_state(0)), updates()).clients == ("0", "1", "2", "3", "4")
    assert alive == [0, 1, 2, 3, 4]
