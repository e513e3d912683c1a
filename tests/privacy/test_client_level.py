"""Privacy of whole clients: what the server does to their updates."""

import math

import pytest
import torch
from scipy import stats

from scaleot_core.errors import BudgetExhaustedError, RoundFailedError
from scaleot_core.federation.averaging import FederationState
from scaleot_core.privacy.accountant import epsilon_of
from scaleot_core.privacy.client_level import ClientLevelNoise, NoisedMean, advance_with_noise, client_level_noise
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.shapes import TensorDict

BOUND, COHORT = 0.5, 8
SILENT = ClientLevelNoise(BOUND, 0.0, COHORT)
BASE = {"a": torch.linspace(-1, 1, 12).view(3, 4), "b": torch.ones(5)}


def update(seed: int, length: float) -> TensorDict:
    """Returns the base moved by ``length`` in a random direction."""
    generator = torch.Generator().manual_seed(seed)
    moves = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in BASE.items()}
    norm = math.sqrt(sum(float(move.square().sum()) for move in moves.values()))
    return {name: BASE[name] + moves[name] * (length / norm) for name in BASE}


def mean_of(updates: dict[str, TensorDict], noise: ClientLevelNoise = SILENT, examples: int = 1) -> torch.Tensor:
    mean = NoisedMean(BASE, noise, SecretSource())
    for client, state in updates.items():
        mean.add(client, state, num_examples=examples, train_loss=1.0)
    aggregate = mean.read()
    assert aggregate.train_loss is None
    return torch.cat([(aggregate.adapter[name].double() - BASE[name].double()).flatten() for name in BASE])


@pytest.mark.parametrize("length", [1e-3, 0.5, 3.0, 1e6])
def test_a_client_moves_the_mean_by_no_more_than_its_share_of_the_bound(length: float) -> None:
    others = {f"clinic-{number}": update(number, 10.0**number) for number in range(4)}
    moved = mean_of({**others, "clinic-9": update(9, length)}) - mean_of({**others, "clinic-9": BASE})
    assert float(moved.norm()) <= BOUND / COHORT * (1 + 1e-5)  # the adapter is float32
    assert float(moved.norm()) == pytest.approx(min(length, BOUND) / COHORT, rel=1e-3)


def test_neither_examples_nor_how_many_answered_change_what_a_client_counts_for() -> None:
    alone = mean_of({"clinic-0": update(0, 2.0)})
    assert torch.equal(mean_of({"clinic-0": update(0, 2.0)}, examples=1_000_000), alone)
    both = mean_of({"clinic-0": update(0, 2.0), "clinic-1": BASE})
    assert torch.equal(both, alone)


def test_a_client_cannot_be_added_twice_in_a_round() -> None:
    with pytest.raises(ValueError, match="clinic-0 has an update"):
        mean = NoisedMean(BASE, SILENT, SecretSource())
        for _ in range(2):
            mean.add("clinic-0", BASE, num_examples=1, train_loss=None)


def test_the_noise_is_normal_with_the_promised_deviation_and_fresh_whatever_the_public_seeds() -> None:
    noise = ClientLevelNoise(BOUND, 3.0, COHORT)
    draws = []
    for _ in range(120):
        torch.manual_seed(0)
        draws.append(mean_of({"clinic-0": BASE}, noise))
    drawn = torch.stack(draws)
    assert len(torch.unique(drawn[:, 0])) == len(drawn)
    stddev = 3.0 * BOUND / COHORT
    assert stats.kstest(drawn.flatten().numpy(), stats.norm(scale=stddev).cdf).pvalue > 1e-4


def test_a_round_without_an_update_releases_nothing() -> None:
    with pytest.raises(RoundFailedError, match="round 3 has no accepted update"):
        advance_with_noise(FederationState(2, BASE), [], ClientLevelNoise(BOUND, 1.0, COHORT), SecretSource())


def noise_for(rounds: int, multiplier: float | None = None) -> ClientLevelNoise:
    return client_level_noise(
        epsilon=2.0,
        delta=1e-5,
        noise_multiplier=multiplier,
        rounds=rounds,
        max_update_norm=BOUND,
        cohort_size=COHORT,
    )


def test_the_least_noise_that_keeps_the_budget_over_all_rounds_is_taken() -> None:
    noise = noise_for(40)
    assert 1.99 < epsilon_of([noise.event(40)], 1e-5) <= 2.0
    assert noise.noise_multiplier == pytest.approx(math.sqrt(40) * noise_for(1).noise_multiplier, rel=1e-3)


def test_noise_that_was_given_is_refused_with_the_rounds_that_fit() -> None:
    with pytest.raises(BudgetExhaustedError) as refused:
        noise_for(1000, 10.0)
    fitting = refused.value.rounds_that_fit
    assert noise_for(fitting, 10.0).noise_multiplier == 10.0
    assert epsilon_of([noise_for(fitting, 10.0).event(fitting + 1)], 1e-5) > 2.0
