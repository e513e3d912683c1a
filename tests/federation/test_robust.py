"""Robust rules: what their papers promise, and what a minority of attackers can do to them and to the mean."""

import itertools
import math
import random
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scaleot_core.errors import RoundFailedError
from scaleot_core.federation.robust import (
    SMOOTHING,
    geometric_median,
    gram_matrix,
    median,
    multi_krum,
    trimmed_mean,
    weiszfeld_weights,
)
from scaleot_core.shapes import TensorDict
from tests.support.aggregation_reference import (
    as_vectors,
    literal_median,
    literal_multi_krum,
    literal_trimmed_mean,
    literal_weiszfeld,
)
from tests.support.updates import SHAPES, random_state

Rule = Callable[[Sequence[TensorDict], TensorDict], TensorDict]
RULES: dict[str, Rule] = {
    "median": lambda states, base: median(states),
    "trimmed_mean": lambda states, base: trimmed_mean(states, 0.4),
    "multi_krum": lambda states, base: multi_krum(states, base, 3)[0],
    "geometric_median": lambda states, base: geometric_median(states, base)[0],
}
BASE = random_state(100)
CLIENTS = 10


def honest_states(count: int, spread: float = 0.1) -> list[TensorDict]:
    """Steps of length about 4 from the base, in one direction but for ``spread`` in every number."""
    step = random_state(7)
    noises = (random_state(1000 + number) for number in range(count))
    return [{name: BASE[name] + step[name] + spread * noise[name] for name in SHAPES} for noise in noises]


def mean_of(states: Sequence[TensorDict]) -> TensorDict:
    return {name: torch.stack([state[name] for state in states]).double().mean(0).float() for name in states[0]}


def distance(one: TensorDict, other: TensorDict) -> float:
    return math.sqrt(sum(float((one[name].double() - other[name].double()).square().sum()) for name in one))


def spread_of(states: Sequence[TensorDict]) -> float:
    return max(distance(one, other) for one, other in itertools.combinations(states, 2))


def constant(value: float) -> TensorDict:
    return {name: torch.full(shape, value) for name, shape in SHAPES.items()}


def stepped(factor: float, states: Sequence[TensorDict]) -> TensorDict:
    """The mean step of the states times a factor, from the base."""
    mean = mean_of(states)
    return {name: BASE[name] + factor * (mean[name] - BASE[name]) for name in mean}


ATTACKS: dict[str, Callable[[Sequence[TensorDict], int], TensorDict]] = {
    "x50 reversed": lambda honest, number: stepped(-50, honest),
    "scaled signs": lambda honest, number: {
        k: -100 * torch.sign(v - BASE[k]) for k, v in honest[number % len(honest)].items()
    },
    "a large norm": lambda honest, number: {k: 1e6 * v for k, v in random_state(number).items()},
    "all at 1e9": lambda honest, number: constant(1e9),
    "all at float32's end": lambda honest, number: constant(-3e38),
}


def attacked(attack: str, attackers: int, clients: int = CLIENTS) -> tuple[list[TensorDict], list[TensorDict]]:
    """The honest states, and all of them in an order that shows nothing; both of the same seed."""
    honest = honest_states(clients - attackers)
    everyone = [*honest, *(ATTACKS[attack](honest, number) for number in range(attackers))]
    random.Random(5).shuffle(everyone)
    return honest, everyone


# What the papers say, literally.


@pytest.mark.parametrize("clients", [1, 2, 3, 8, 9])
def test_the_median_is_the_papers(clients: int) -> None:
    states = [random_state(number) for number in range(clients)]
    [ours] = as_vectors([median(states)])
    assert torch.allclose(ours, literal_median(as_vectors(states)), rtol=1e-7, atol=0)


@pytest.mark.parametrize(("clients", "share"), [(10, 0.1), (10, 0.2), (10, 0.4), (5, 0.2), (30, 0.1)])
def test_the_trimmed_mean_is_the_papers(clients: int, share: float) -> None:
    states = [random_state(number) for number in range(clients)]
    [ours] = as_vectors([trimmed_mean(states, share)])
    assert torch.allclose(ours, literal_trimmed_mean(as_vectors(states), share), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("clients", "attackers"), [(5, 1), (10, 3), (11, 4)])
def test_multi_krum_is_the_papers(clients: int, attackers: int) -> None:
    states = [random_state(number) for number in range(clients)]
    ours, shares = multi_krum(states, BASE, attackers)
    chosen, mean = literal_multi_krum(as_vectors(states), attackers, clients - attackers)
    assert [number for number, share in enumerate(shares) if share] == chosen
    assert torch.allclose(as_vectors([ours])[0], mean, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("clients", [2, 3, 10, 17])
@pytest.mark.parametrize("attack", [None, "x50 reversed", "a large norm"])
def test_weiszfeld_on_inner_products_is_weiszfeld_on_adapters(clients: int, attack: str | None) -> None:
    states = attacked(attack, clients // 3, clients)[1] if attack else honest_states(clients, spread=1.0)
    weights = weiszfeld_weights(gram_matrix(states, BASE))
    vectors, [start] = as_vectors(states), as_vectors([BASE])
    ours = sum(weight * vector for weight, vector in zip(weights, vectors, strict=True))
    norms = sorted(float((vector - start).norm()) for vector in vectors)
    literal = literal_weiszfeld(vectors, SMOOTHING * norms[(clients - 1) // 2], iterations=500)
    assert float((ours - literal).norm()) <= 1e-9 * norms[(clients - 1) // 2]
    assert float(weights.sum()) == pytest.approx(1, abs=1e-12) and float(weights.min()) > 0


def test_no_step_away_from_the_geometric_median_lessens_the_distances() -> None:
    states = honest_states(9, spread=1.0)
    point = as_vectors([geometric_median(states, BASE)[0]])[0]
    vectors = as_vectors(states)

    def total(at: torch.Tensor) -> float:
        return sum(float((at - vector).norm()) for vector in vectors)

    for seed in range(50):
        [away] = as_vectors([random_state(seed)])
        assert total(point + 0.01 * away) > total(point)


# What attackers can do.


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("attackers", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["median", "trimmed_mean", "geometric_median"])
def test_up_to_two_clients_in_five_cannot_move_a_robust_rule_and_one_moves_the_mean(
    name: str, attackers: int, attack: str
) -> None:
    honest, everyone = attacked(attack, attackers)
    spread = spread_of(honest)
    assert distance(RULES[name](everyone, BASE), mean_of(honest)) < 1.5 * spread
    assert distance(mean_of(everyone), mean_of(honest)) > 10 * spread


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_majority_of_attackers_moves_the_median_and_the_geometric_median_too(attack: str) -> None:
    honest, everyone = attacked(attack, 6)
    for name in ("median", "geometric_median"):
        assert distance(RULES[name](everyone, BASE), mean_of(honest)) > 10 * spread_of(honest)


@pytest.mark.parametrize("far", [1e2, 1e4, 1e8, 1e16, 1e32])
def test_the_geometric_median_does_not_follow_attackers_who_go_ever_further_away(far: float) -> None:
    honest = honest_states(6)
    everyone = [*honest, *([constant(far)] * 4)]
    assert distance(geometric_median(everyone, BASE)[0], mean_of(honest)) < 2 * spread_of(honest)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("attackers", [1, 2, 3])
def test_multi_krum_picks_no_attacker(attack: str, attackers: int) -> None:
    honest, everyone = attacked(attack, attackers)
    aggregate, shares = multi_krum(everyone, BASE, assumed_attackers=3)
    chosen = [state for state, share in zip(everyone, shares, strict=True) if share]
    assert len(chosen) == 7
    assert all(any(state is one for one in honest) for state in chosen)
    assert distance(aggregate, mean_of(honest)) < spread_of(honest)


def test_multi_krum_beyond_the_attackers_it_assumes_gives_way() -> None:
    _, everyone = attacked("all at 1e9", 4)
    assert distance(multi_krum(everyone, BASE, assumed_attackers=1)[0], BASE) > 1e6


@pytest.mark.parametrize(("clients", "attackers"), [(1, 1), (4, 1), (6, 2), (10, 4)])
def test_multi_krum_with_fewer_than_2f_plus_3_clients_is_refused_with_the_numbers(clients: int, attackers: int) -> None:
    with pytest.raises(RoundFailedError, match=rf"at least {2 * attackers + 3} updates .* got {clients}"):
        multi_krum(honest_states(clients), BASE, attackers)


@pytest.mark.parametrize(("share", "attackers"), [(0.1, 1), (0.2, 2), (0.3, 3), (0.4, 4), (0.35, 4)])
@pytest.mark.parametrize("attack", ATTACKS)
def test_every_number_of_the_trimmed_mean_lies_between_two_honest_ones(
    share: float, attackers: int, attack: str
) -> None:
    honest, everyone = attacked(attack, attackers)
    aggregate = trimmed_mean(everyone, share)
    for name, values in aggregate.items():
        lines = torch.stack([state[name] for state in honest])
        assert bool(((lines.amin(0) <= values) & (values <= lines.amax(0))).all())


@pytest.mark.parametrize(("clients", "kept"), [(1, 1), (2, 2), (3, 1), (4, 2), (5, 3), (9, 5), (10, 6), (15, 9)])
def test_a_share_of_clients_is_rounded_up_and_leaves_one_at_least(clients: int, kept: int) -> None:
    states = [{"w": torch.tensor([float(3**number)])} for number in range(clients)]
    trimmed = (clients - kept) // 2
    middle = [3**number for number in range(trimmed, clients - trimmed)]
    assert float(trimmed_mean(states, 0.2)["w"]) == pytest.approx(sum(middle) / kept)


# The edges.


@pytest.mark.parametrize("name", RULES)
def test_equal_adapters_come_back_bit_for_bit(name: str) -> None:
    state = random_state(3)
    aggregate = RULES[name]([state] * CLIENTS, BASE)
    assert all(torch.equal(aggregate[key], state[key]) for key in state)


@pytest.mark.parametrize("name", RULES)
def test_clients_that_changed_nothing_change_nothing(name: str) -> None:
    aggregate = RULES[name]([BASE] * CLIENTS, BASE)
    assert all(torch.equal(aggregate[key], BASE[key]) for key in BASE)


@pytest.mark.parametrize("name", ["median", "geometric_median"])
def test_a_majority_that_changed_nothing_stands_against_the_rest(name: str) -> None:
    everyone = [BASE] * 6 + [constant(1e6)] * 4
    assert distance(RULES[name](everyone, BASE), BASE) < 1e-6


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "geometric_median"])
def test_one_client_alone_is_the_aggregate_bit_for_bit(name: str) -> None:
    state = random_state(3)
    aggregate = RULES[name]([state], BASE)
    assert all(torch.equal(aggregate[key], state[key]) for key in state)


@pytest.mark.parametrize("name", RULES)
def test_neither_adapters_nor_base_are_changed(name: str) -> None:
    states, base = honest_states(CLIENTS), random_state(100)
    RULES[name](states, base)
    assert all(
        torch.equal(one[key], other[key])
        for one, other in zip(states, honest_states(CLIENTS), strict=True)
        for key in one
    )
    assert all(torch.equal(base[key], BASE[key]) for key in base)


@pytest.mark.parametrize("name", RULES)
def test_an_adapter_larger_than_a_slice_is_aggregated_whole(name: str) -> None:
    shapes = {"w": (600, 700), "b": (3,)}
    states = [random_state(number, shapes) for number in range(9)]
    base = random_state(50, shapes)
    aggregate = RULES[name](states, base)
    rows = [{"w": state["w"][:, :100], "b": state["b"]} for state in states]
    assert {key: value.shape for key, value in aggregate.items()} == {"w": (600, 700), "b": (3,)}
    if name in ("median", "trimmed_mean"):  # a coordinate knows of no other
        part = RULES[name](rows, base)
        assert torch.equal(aggregate["w"][:, :100], part["w"]) and torch.equal(aggregate["b"], part["b"])
    else:
        gram = gram_matrix(states, base)
        [start], vectors = as_vectors([base]), as_vectors(states)
        literal = torch.stack([vector - start for vector in vectors])
        assert torch.allclose(gram, literal @ literal.T, rtol=1e-12, atol=1e-6)


# What holds for any adapters.


def drawn_states(draw: st.DrawFn) -> list[TensorDict]:
    """Nine adapters of five numbers, whole eighths: sums and products with them are exact."""
    rows = draw(st.lists(st.lists(st.integers(-400, 400), min_size=5, max_size=5), min_size=9, max_size=9))
    return [{"w": torch.tensor(row) / 8} for row in rows]


STATES = st.composite(drawn_states)()


@pytest.mark.parametrize("name", RULES)
@given(states=STATES, shift=st.lists(st.integers(-64, 64), min_size=5, max_size=5))
@settings(max_examples=40, deadline=None)
def test_adapters_moved_together_move_the_aggregate_as_much(
    name: str, states: list[TensorDict], shift: list[int]
) -> None:
    start, moved = {"w": torch.zeros(5)}, {"w": torch.tensor(shift, dtype=torch.float32)}
    before = RULES[name](states, start)["w"]
    after = RULES[name]([{"w": state["w"] + moved["w"]} for state in states], moved)["w"]
    assert torch.allclose(after, before + moved["w"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", RULES)
@given(states=STATES, power=st.integers(-20, 20))
@settings(max_examples=40, deadline=None)
def test_adapters_scaled_together_scale_the_aggregate_as_much(name: str, states: list[TensorDict], power: int) -> None:
    base, factor = {"w": torch.zeros(5)}, 2.0**power
    before = RULES[name](states, base)["w"]
    after = RULES[name]([{"w": state["w"] * factor} for state in states], base)["w"]
    assert torch.allclose(after, before * factor, rtol=1e-5, atol=1e-5 * factor)


@pytest.mark.parametrize("name", RULES)
@given(states=STATES)
@settings(max_examples=40, deadline=None)
def test_no_number_leaves_the_range_of_the_clients(name: str, states: list[TensorDict]) -> None:
    values = RULES[name](states, {"w": torch.zeros(5)})["w"]
    lines = torch.stack([state["w"] for state in states])
    assert bool(((lines.amin(0) - 1e-4 <= values) & (values <= lines.amax(0) + 1e-4)).all())
