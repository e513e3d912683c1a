import dataclasses
from typing import get_args

import numpy as np
import pytest
import torch

from scaleot_core.errors import BudgetExhaustedError, Reason, RoundFailedError, UpdateRejectedError
from scaleot_core.federation.averaging import FederationState
from scaleot_core.federation.messages import MechanismName, PrivateRelease
from scaleot_core.federation.validation import SCALARS, AdapterUpdate
from scaleot_core.privacy.accountant import epsilon_of
from scaleot_core.privacy.discrete_gaussian import CELLS_PER_UNIT
from scaleot_core.privacy.dp_sgd import DPSGD
from scaleot_core.privacy.dpzero import DPZero
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.lmo_dp import LMODP
from scaleot_core.privacy.mechanism import MECHANISMS
from scaleot_core.privacy.noise import NOISES
from scaleot_core.privacy.private_rounds import (
    AskedTraining,
    PrivacyBudget,
    advance_by_scalars,
    expected_scalars,
    mechanism_for_round,
    moved_by_mean,
    promised_event,
    round_event,
    scalar_steps,
)
from scaleot_core.privacy.replay import replay
from scaleot_core.privacy.units import unit_of
from scaleot_core.privacy.update_noise import UpdateGaussian
from scaleot_core.training.local import LocalTraining
from tests.support.private_updates import privacy_request

BUDGET = PrivacyBudget(epsilon=4.0, delta=1e-5)


def asked(mechanism: MechanismName = "dpzero", **changes: int) -> AskedTraining:
    request = privacy_request(mechanism, rounds=changes.pop("rounds", 5))
    fields = {"local_steps": 4, "batch_size": 8, "learning_rate": 0.5, "optimizer": "sgd", "seed": 3, **changes}
    return AskedTraining(request, **fields)  # type: ignore[arg-type]


def test_every_mechanism_of_a_request_has_its_row_and_a_noise_that_there_is() -> None:
    assert set(MECHANISMS) == set(get_args(MechanismName))
    assert {row.calibrated_noise for row in MECHANISMS.values()} <= set(NOISES)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_mechanism_costs_the_event_and_all_planned_rounds_just_keep_the_budget(mechanism: MechanismName) -> None:
    event = round_event(asked(mechanism), 100, BUDGET)
    built = mechanism_for_round(asked(mechanism), event, round_number=2, batch_seed=0, recomputes_activations=False)
    assert built.event() == event
    assert 3.95 < epsilon_of((event.times(5),), 1e-5) <= 4.0


def test_a_data_owner_with_fewer_records_than_a_batch_takes_all_of_them() -> None:
    assert round_event(asked(), 5, BUDGET).sample_rate == 1.0
    assert round_event(asked(), 100, BUDGET).sample_rate == 0.08


def test_what_other_runs_spent_leaves_less_for_this_one() -> None:
    alone = round_event(asked("dp-sgd"), 100, BUDGET)
    after = round_event(asked("dp-sgd"), 100, BUDGET, (alone.times(2),))
    assert after.parameters["noise_multiplier"] > alone.parameters["noise_multiplier"]
    assert epsilon_of((alone.times(2), after.times(5)), 1e-5) <= 4.0


def test_noise_of_one_s_own_is_refused_with_the_rounds_that_fit() -> None:
    own = PrivacyBudget(4.0, 1e-5, noise_multiplier=1.0)
    with pytest.raises(BudgetExhaustedError) as refused:
        round_event(asked("dp-sgd", rounds=1000), 100, own)
    fits = refused.value.rounds_that_fit
    round_event(asked("dp-sgd", rounds=fits), 100, own)
    with pytest.raises(BudgetExhaustedError):
        round_event(asked("dp-sgd", rounds=fits + 1), 100, own)


def test_a_round_s_noise_is_in_records_or_in_whole_data_sets_and_never_both() -> None:
    assert unit_of("update-gaussian") != unit_of("dp-sgd") == unit_of("dpzero") == unit_of("lmo-dp")


STATE = FederationState(1, {"a": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), "b": torch.zeros(5)})


def update(client: str, seed: int, num_examples: int) -> AdapterUpdate:
    scalars = torch.randint(-9000, 9000, (4, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    return AdapterUpdate(client, num_examples, None, {SCALARS: scalars})


def test_the_next_adapter_is_the_weighted_mean_of_what_each_client_s_scalars_make() -> None:
    updates = [update("x", 1, 10), update("y", 2, 30)]
    outcome = advance_by_scalars(STATE, updates, asked())
    assert outcome.state.rounds_done == 2 and outcome.clients == ("x", "y") and outcome.train_loss is None
    alone = [replay(STATE.adapter, one.state[SCALARS].numpy(), scalar_steps(asked(), 2)) for one in updates]
    for name, tensor in outcome.state.adapter.items():
        torch.testing.assert_close(tensor, 0.25 * alone[0][name] + 0.75 * alone[1][name], rtol=0, atol=1e-6)


def test_the_order_of_updates_changes_no_bit() -> None:
    one, other = update("x", 1, 10), update("y", 2, 30)
    forth, back = (advance_by_scalars(STATE, pair, asked()).state.adapter for pair in ((one, other), (other, one)))
    assert all(torch.equal(forth[name], back[name]) for name in forth)


def test_a_round_without_an_update_fails() -> None:
    with pytest.raises(RoundFailedError, match="round 2"):
        advance_by_scalars(STATE, [], asked())


def test_rounds_move_along_directions_of_their_own() -> None:
    scalars = [{SCALARS: torch.ones(4, 2, dtype=torch.int32)}]
    second, third = (moved_by_mean(STATE.adapter, scalars, [1], asked(), number) for number in (2, 3))
    assert not torch.equal(second["a"], third["a"])


def test_the_bound_on_scalars_is_the_length_of_the_step_that_they_make() -> None:
    large = {"a": torch.zeros(200, 100)}
    expected = expected_scalars(asked(), 1, 20_000)
    scalars = update("x", 1, 1).state[SCALARS]
    moved = moved_by_mean(large, [{SCALARS: scalars}], [1], asked(), 1)["a"]
    assert (expected.steps, expected.directions) == (4, 2)
    assert float(moved.norm()) == pytest.approx(expected.unit_norm * np.linalg.norm(scalars.numpy()), rel=0.03)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_budget_that_other_runs_have_spent_refuses_the_rounds_before_training(mechanism: MechanismName) -> None:
    spent = (PrivacyEvent("gaussian", {"noise_multiplier": 0.5}, 1.0, 4),)
    with pytest.raises(BudgetExhaustedError) as refused:
        round_event(asked(mechanism), 100, BUDGET, spent)
    assert (refused.value.rounds_that_fit, refused.value.budget) == (0, BUDGET.epsilon)


NUM_EXAMPLES = 80
HONEST = PrivateRelease(
    noise="discrete-gaussian",
    parameters={"noise_multiplier": 1.0, "cells_per_unit": CELLS_PER_UNIT},
    sample_rate=0.1,
    count=4,
    ledger_head="c" * 64,
)


def test_a_promise_is_read_as_the_event_it_names() -> None:
    event = promised_event(asked(), "x", HONEST, num_examples=NUM_EXAMPLES)
    assert (event.noise, event.count, event.sample_rate) == ("discrete-gaussian", 4, 0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {"noise": "gaussian"},
        {"count": 3},
        {"noise": "nothing"},
        {"parameters": {}},
        {"parameters": {"x": 1.0}},
        {"parameters": {"noise_multiplier": -1.0, "cells_per_unit": CELLS_PER_UNIT}},
        {"parameters": {"noise_multiplier": 1.0, "cells_per_unit": 2.0**20}},
        {"parameters": {"noise_multiplier": 1e200, "cells_per_unit": CELLS_PER_UNIT}},
        {"sample_rate": 1e-9},
    ],
)
def test_a_promise_of_another_noise_or_of_fewer_releases_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UpdateRejectedError) as rejected:
        promised_event(asked(), "x", HONEST.model_copy(update=changes), num_examples=NUM_EXAMPLES)
    assert rejected.value.reason is Reason.PRIVACY


def test_a_promise_for_fewer_scalars_than_were_asked_for_is_refused() -> None:
    """Noise on one number is cheaper than the same on two."""
    event = round_event(asked("lmo-dp"), NUM_EXAMPLES, BUDGET)
    assert event.parameters["dimension"] == 2.0
    said = dataclasses.replace(event, parameters={**event.parameters, "dimension": 1.0})
    fields = {"noise": said.noise, "parameters": dict(said.parameters), "sample_rate": said.sample_rate, "count": 4}
    promise = PrivateRelease.model_validate({**fields, "ledger_head": "c" * 64})
    with pytest.raises(UpdateRejectedError) as refused:
        promised_event(asked("lmo-dp"), "x", promise, NUM_EXAMPLES)
    assert refused.value.reason is Reason.PRIVACY and "dimension 2" in str(refused.value)


def test_a_round_takes_up_the_directions_where_the_round_before_left_off() -> None:
    assert [scalar_steps(asked(), number).first_step for number in (1, 2, 3)] == [0, 4, 8]
    assert scalar_steps(asked(), 2).direction_key == scalar_steps(asked(), 3).direction_key
    assert scalar_steps(asked(), 2).direction_key != scalar_steps(asked(seed=4), 2).direction_key


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_mechanism_has_every_setting_that_was_asked_for(mechanism: MechanismName) -> None:
    request = privacy_request(mechanism, rounds=5, max_grad_norm=0.7, num_directions=2, smoothing=0.25)
    wanted = dataclasses.replace(asked(mechanism), privacy=request, learning_rate=0.3)
    event = round_event(wanted, 100, BUDGET)
    built = mechanism_for_round(wanted, event, round_number=3, batch_seed=9, recomputes_activations=True)
    match built:
        case DPSGD():
            assert (built.steps, built.sample_rate, built.expected_batch_size) == (4, 0.08, 8.0)
            assert (built.max_grad_norm, built.learning_rate, built.optimizer) == (0.7, 0.3, "sgd")
            assert built.recomputes_activations
        case DPZero() | LMODP():
            steps = built.zeroth_order
            assert (steps.steps, steps.sample_rate, steps.expected_batch_size) == (4, 0.08, 8.0)
            assert (steps.max_grad_norm, steps.learning_rate, steps.smoothing) == (0.7, 0.3, 0.25)
            assert (steps.num_directions, steps.first_step) == (2, 8)
        case UpdateGaussian():
            assert built.training == LocalTraining(4, 8, 0.3, "sgd", gradient_checkpointing=True)
            assert (built.seed, built.max_update_norm) == (9, 0.7)
