"""S18: accepted updates that steer, in number within what the rules allow, on vectors and on a real model."""

import math
from functools import cache

import pytest
import torch

from scaleot_core.adapters.adapter import AttachedAdapter, attach_adapter
from scaleot_core.federation.averaging import FederationState, advance
from scaleot_core.federation.robust import geometric_median
from scaleot_core.federation.rules import MEAN, Aggregation, AggregationRule
from scaleot_core.federation.validation import AdapterUpdate
from scaleot_core.progress import SilentReporter
from scaleot_core.shapes import TensorDict
from scaleot_core.training.data import EncodedExample
from scaleot_core.training.local import LocalTraining, train_adapter
from tests.support.federations import lora_spec, tiny_emulator

NUMBERS = 20_000


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Vectors of length about 1."""
    return torch.randn(*shape, NUMBERS, generator=generator) / math.sqrt(NUMBERS)


def error_of(vectors: list[torch.Tensor], honest_mean: torch.Tensor) -> float:
    base = {"w": torch.zeros(NUMBERS)}
    point = geometric_median([{"w": vector} for vector in vectors], base)[0]["w"]
    return float((point - honest_mean).norm() / honest_mean.norm())


@pytest.mark.parametrize("heterogeneity", [0.5, 2.0])
@pytest.mark.parametrize(("clients", "hostile"), [(4, 1), (10, 2), (20, 4)])
def test_the_geometric_median_stays_near_the_honest_mean_where_the_mean_goes_ten_times_its_length_away(
    clients: int, hostile: int, heterogeneity: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    honest = normal(generator) + heterogeneity * normal(generator, clients - hostile)
    mean, deviation = honest.mean(0), honest.std(0, correction=0)
    attacks = {
        "x50 reversed": -50 * mean,
        "sign flip": -mean,
        "a little is enough": mean - deviation,
        "inner product": -0.5 * mean,
    }
    for attack, vector in attacks.items():
        assert error_of([*honest, *([vector] * hostile)], mean) <= 0.6, attack
    steered = torch.stack([*honest, *([attacks["x50 reversed"]] * hostile)]).mean(0)
    assert float((steered - mean).norm() / mean.norm()) > 10
    assert error_of([*honest], mean) < 0.03, "it costs next to nothing where all are honest"


CLIENTS, HOSTILE, ROUNDS = 10, (0, 4), 3
SETTINGS = LocalTraining(4, 8, 5e-2, "adamw")
ROBUST = [
    AggregationRule(Aggregation.MEDIAN),
    AggregationRule(Aggregation.TRIMMED_MEAN, trimmed_share=0.2),
    AggregationRule(Aggregation.MULTI_KRUM, assumed_attackers=2),
    AggregationRule(Aggregation.GEOMETRIC_MEDIAN),
]


def texts(owner: int) -> list[EncodedExample]:
    """The same five words over and over, in another order at every data owner: something to learn for all."""
    generator = torch.Generator().manual_seed(owner)
    words = [11, 42, 7, 99, 23]
    rows = [[words[i] for i in torch.randperm(5, generator=generator).tolist()] for _ in range(8)]
    return [EncodedExample(tuple(row + row), 1) for row in rows]


def tuned(attached: AttachedAdapter, base: TensorDict, client: int, number: int) -> TensorDict:
    attached.load(base)
    seed = 100 * number + client
    train_adapter(attached, texts(client), SETTINGS, pad_token_id=0, seed=seed, reporter=SilentReporter())
    return attached.state()


def reversed_step(base: TensorDict, state: TensorDict) -> TensorDict:
    return {name: start - 50 * (state[name] - start) for name, start in base.items()}


@cache
def held_out_loss(rule: AggregationRule, *, rounds: int = ROUNDS, hostile: tuple[int, ...] = ()) -> float:
    """The loss, on text of nobody's, of the adapter that the rounds leave."""
    emulator = tiny_emulator()
    attached = attach_adapter(emulator.model, emulator.layout, lora_spec())
    try:
        state = FederationState(0, attached.state())
        for number in range(rounds):
            updates = []
            for client in range(CLIENTS):
                adapter = tuned(attached, state.adapter, client, number)
                sent = reversed_step(state.adapter, adapter) if client in hostile else adapter
                updates.append(AdapterUpdate(f"clinic-{client}", 8, 1.0, sent))
            state = advance(state, updates, rule).state
        attached.load(state.adapter)
        tokens = torch.tensor([example.token_ids for example in texts(1000)])
        with torch.inference_mode():
            return float(emulator.model(input_ids=tokens, labels=tokens, use_cache=False).loss)
    finally:
        attached.detach()


@pytest.mark.parametrize("rule", ROBUST, ids=lambda rule: rule.aggregation.value)
def test_a_robust_rule_trains_as_if_two_hostile_clients_of_ten_were_honest(rule: AggregationRule) -> None:
    assert held_out_loss(rule, hostile=HOSTILE) < 1.05 * held_out_loss(MEAN)


def test_the_mean_is_carried_beyond_where_it_began_by_two_hostile_clients_of_ten() -> None:
    untrained = held_out_loss(MEAN, rounds=0)
    assert held_out_loss(MEAN) < 0.95 * untrained
    assert held_out_loss(MEAN, hostile=HOSTILE) > untrained


def test_the_mean_of_products_learns_as_the_mean_of_factors_does() -> None:
    assert held_out_loss(AggregationRule(Aggregation.PRODUCT)) < 1.02 * held_out_loss(MEAN)
