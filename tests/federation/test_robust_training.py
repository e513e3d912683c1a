"""Rounds on a real model with clients that fight them: training goes on under the robust rules, not under the mean."""

from collections.abc import Sequence

import pytest
import torch

from scaleot_core.adapters.adapter import AttachedAdapter, attach_adapter
from scaleot_core.federation.averaging import FederationState, advance
from scaleot_core.federation.rules import MEAN, Aggregation, AggregationRule
from scaleot_core.federation.validation import AdapterUpdate
from scaleot_core.progress import SilentReporter
from scaleot_core.shapes import TensorDict
from scaleot_core.training.data import EncodedExample
from scaleot_core.training.local import LocalTraining, train_adapter
from tests.support.federations import lora_spec, tiny_emulator

CLIENTS, HOSTILE, ROUNDS = 7, 2, 4
ROBUST = [
    AggregationRule(Aggregation.MEDIAN),
    AggregationRule(Aggregation.TRIMMED_MEAN, trimmed_share=0.2),
    AggregationRule(Aggregation.MULTI_KRUM, assumed_attackers=HOSTILE),
    AggregationRule(Aggregation.GEOMETRIC_MEDIAN),
]
SETTINGS = LocalTraining(4, 8, 5e-2, "adamw")


def texts(client: int) -> list[EncodedExample]:
    """The same five words over and over, in another order at every client: something to learn for all."""
    generator = torch.Generator().manual_seed(client)
    words = [11, 42, 7, 99, 23]
    rows = [[words[i] for i in torch.randperm(5, generator=generator).tolist()] for _ in range(8)]
    return [EncodedExample(tuple(row + row), 1) for row in rows]


def tuned(attached: AttachedAdapter, base: TensorDict, client: int, number: int) -> tuple[TensorDict, float]:
    attached.load(base)
    seed = 100 * number + client
    result = train_adapter(attached, texts(client), SETTINGS, pad_token_id=0, seed=seed, reporter=SilentReporter())
    return attached.state(), result.mean_loss


def fought(base: TensorDict, state: TensorDict) -> TensorDict:
    """Thirty times the honest step, backwards."""
    return {name: start - 30 * (state[name] - start) for name, start in base.items()}


def losses_of_rounds(rule: AggregationRule, hostile: Sequence[int]) -> list[float]:
    """The honest clients' mean loss in every round, from the adapter that the round before left."""
    emulator = tiny_emulator()
    attached = attach_adapter(emulator.model, emulator.layout, lora_spec())
    try:
        state, losses = FederationState(0, attached.state()), []
        for number in range(ROUNDS):
            updates, honest_losses = [], []
            for client in range(CLIENTS):
                adapter, loss = tuned(attached, state.adapter, client, number)
                if client in hostile:
                    adapter = fought(state.adapter, adapter)
                else:
                    honest_losses.append(loss)
                updates.append(AdapterUpdate(f"clinic-{client}", 8, loss, adapter))
            losses.append(sum(honest_losses) / len(honest_losses))
            state = advance(state, updates, rule).state
        return losses
    finally:
        attached.detach()


@pytest.mark.parametrize("rule", ROBUST, ids=lambda rule: rule.aggregation.value)
def test_training_goes_on_under_a_robust_rule_with_two_hostile_clients_of_seven(rule: AggregationRule) -> None:
    losses = losses_of_rounds(rule, hostile=(0, 4))
    assert losses[-1] < losses[0] - 0.3


def test_the_mean_is_carried_away_by_two_hostile_clients_of_seven() -> None:
    losses = losses_of_rounds(MEAN, hostile=(0, 4))
    assert losses[-1] > losses[0] + 0.3


@pytest.mark.parametrize("aggregation", [Aggregation.FEDAVG, Aggregation.PRODUCT])
def test_both_means_learn_where_all_are_honest(aggregation: Aggregation) -> None:
    losses = losses_of_rounds(AggregationRule(aggregation), hostile=())
    assert losses[-1] < losses[0] - 0.3
