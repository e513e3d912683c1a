import itertools
import random
import tracemalloc
from collections.abc import Iterator

import pytest
import torch

from scaleot_core.errors import RoundFailedError
from scaleot_core.federation.averaging import FederationState, HeldUpdates, advance, aggregator_for
from scaleot_core.federation.product import product_mean
from scaleot_core.federation.robust import geometric_median, median, multi_krum, trimmed_mean
from scaleot_core.federation.rules import MEAN, Aggregation, AggregationRule
from scaleot_core.federation.validation import AdapterUpdate
from scaleot_core.shapes import TensorDict
from tests.support.updates import random_state

HOLDING = [
    AggregationRule(Aggregation.MEDIAN),
    AggregationRule(Aggregation.TRIMMED_MEAN, trimmed_share=0.2),
    AggregationRule(Aggregation.MULTI_KRUM, assumed_attackers=1),
    AggregationRule(Aggregation.GEOMETRIC_MEDIAN),
    AggregationRule(Aggregation.PRODUCT),
]
BASE = random_state(0)


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


def test_every_rule_but_the_means_holds_its_updates() -> None:
    assert {rule.aggregation for rule in HOLDING} == {one for one in Aggregation if not one.is_mean}
    assert all(isinstance(aggregator_for(rule, BASE), HeldUpdates) for rule in HOLDING)
    assert not isinstance(aggregator_for(MEAN, BASE), HeldUpdates)


@pytest.mark.parametrize("rule", HOLDING, ids=lambda rule: rule.aggregation.value)
def test_the_order_of_arrival_changes_no_bit(rule: AggregationRule) -> None:
    updates = [update(f"clinic-{i}", i + 1, random_state(i + 1), loss=i / 7) for i in range(9)]
    outcomes = []
    for seed in range(6):
        random.Random(seed).shuffle(updates)
        outcomes.append(advance(FederationState(2, BASE), updates, rule))
        assert outcomes[-1].clients == tuple(one.client for one in updates)
    for other in outcomes[1:]:
        assert all(torch.equal(other.state.adapter[name], tensor) for name, tensor in outcomes[0].state.adapter.items())
        assert (other.train_loss, other.client_shares) == (outcomes[0].train_loss, outcomes[0].client_shares)
        assert other.residual_share == outcomes[0].residual_share


def test_a_round_is_what_its_rule_makes_of_the_clients_and_says_what_each_counts_for() -> None:
    states = [random_state(i + 1) for i in range(7)]
    updates = [update(f"c{i}", 10**i, state) for i, state in enumerate(states)]
    krum, shares = multi_krum(states, BASE, 1)
    point, weights = geometric_median(states, BASE)
    product, residual_share = product_mean(states, [10**i for i in range(7)], BASE)
    names = [f"c{i}" for i in range(7)]
    expected = {
        "median": (median(states), {}, None),
        "trimmed_mean": (trimmed_mean(states, 0.2), {}, None),
        "multi_krum": (krum, dict(zip(names, shares, strict=True)), None),
        "geometric_median": (point, dict(zip(names, weights, strict=True)), None),
        "product": (product, {}, residual_share),
    }
    for rule in HOLDING:
        outcome = advance(FederationState(4, BASE), updates, rule)
        adapter, client_shares, residual = expected[rule.aggregation]
        assert list(outcome.state.adapter) == list(BASE) and outcome.state.rounds_done == 5
        assert all(torch.equal(outcome.state.adapter[name], adapter[name]) for name in BASE)
        assert all(tensor.dtype is torch.float32 for tensor in outcome.state.adapter.values())
        assert (outcome.client_shares, outcome.residual_share) == (client_shares, residual)


@pytest.mark.parametrize("rule", HOLDING[:4], ids=lambda rule: rule.aggregation.value)
def test_a_claim_of_many_examples_buys_nothing_under_a_robust_rule_and_the_mean_itself(rule: AggregationRule) -> None:
    states = [random_state(i + 1) for i in range(7)]
    modest = [update(str(i), 1, state) for i, state in enumerate(states)]
    claims = [*modest[:6], update("6", 10_000_000, states[6])]
    before, after = (advance(FederationState(0, BASE), one, rule).state.adapter for one in (modest, claims))
    assert all(torch.equal(before[name], after[name]) for name in BASE)
    bought = advance(FederationState(0, BASE), claims).state.adapter
    assert all(torch.allclose(bought[name], states[6][name], atol=1e-4) for name in BASE)


def test_too_few_updates_for_multi_krum_fail_the_round_with_the_numbers() -> None:
    updates = [update(str(i), 1, random_state(i)) for i in range(4)]
    with pytest.raises(RoundFailedError, match=r"round 5: multi_krum .* at least 5 updates .* got 4"):
        advance(FederationState(4, BASE), updates, AggregationRule(Aggregation.MULTI_KRUM, assumed_attackers=1))


@pytest.mark.parametrize("rule", HOLDING, ids=lambda rule: rule.aggregation.value)
def test_no_update_fails_the_round_under_every_rule(rule: AggregationRule) -> None:
    with pytest.raises(RoundFailedError, match="round 1 has no accepted update"):
        advance(FederationState(0, BASE), [], rule)


@pytest.mark.parametrize("rule", HOLDING, ids=lambda rule: rule.aggregation.value)
def test_one_missing_loss_leaves_no_mean_of_losses(rule: AggregationRule) -> None:
    updates = [AdapterUpdate(str(i), 1, None if i == 3 else 1.0, random_state(i)) for i in range(6)]
    assert advance(FederationState(0, BASE), updates, rule).train_loss is None
