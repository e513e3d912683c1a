import contextlib
import dataclasses

import pytest
import torch

from scaleot_core.errors import Reason, UpdateRejectedError
from scaleot_core.federation.messages import MechanismName
from scaleot_core.federation.validation import AdapterUpdate
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.private_rounds import AskedTraining, PrivacyBudget, mechanism_for_round, round_event
from scaleot_core.privacy.promised_norm import check_promised_norm
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.progress import SilentReporter
from scaleot_core.shapes import TensorDict
from scaleot_core.training.local import make_optimizer
from tests.support.private_tasks import attached_adapter, private_task, random_examples
from tests.support.private_updates import privacy_request

NUM_EXAMPLES = 40
BOUNDED: tuple[MechanismName, ...] = ("dp-sgd", "dpzero", "update-gaussian")


def asked(mechanism: MechanismName, *, max_grad_norm: float = 0.1, optimizer: str = "sgd") -> AskedTraining:
    request = privacy_request(mechanism, max_grad_norm=max_grad_norm, smoothing=0.05)
    return AskedTraining(request, local_steps=2, batch_size=8, learning_rate=0.5, optimizer=optimizer, seed=3)  # type: ignore[arg-type]


def event_of(mechanism: MechanismName, epsilon: float = 8.0) -> PrivacyEvent:
    return round_event(asked(mechanism), NUM_EXAMPLES, PrivacyBudget(epsilon, 1e-5))


def release(done: AskedTraining, event: PrivacyEvent) -> tuple[AdapterUpdate, TensorDict]:
    """What a client that does ``done`` with the noise of ``event`` sends, and the adapter that it started from."""
    attached = attached_adapter()
    base = attached.state()
    mechanism = mechanism_for_round(done, event, round_number=1, batch_seed=0, recomputes_activations=False)
    task = private_task(attached, random_examples(NUM_EXAMPLES), mechanism.choose_way(attached, pad_token_id=0))
    released = mechanism.release(task, secret=SecretSource(), charge=lambda _: None, reporter=SilentReporter())
    return AdapterUpdate("clinic", NUM_EXAMPLES, None, released.tensors), base


@pytest.mark.parametrize("epsilon", [0.5, 8.0])
@pytest.mark.parametrize("mechanism", [*BOUNDED, "lmo-dp"])
def test_an_honest_update_is_within_the_bound(mechanism: MechanismName, epsilon: float) -> None:
    event = event_of(mechanism, epsilon)
    check_promised_norm(asked(mechanism), event, *release(asked(mechanism), event))


@pytest.mark.parametrize("mechanism", BOUNDED)
def test_an_update_that_was_clipped_far_too_wide_is_refused(mechanism: MechanismName) -> None:
    """Ten thousand times: what is longer is the noise, which is short in two dimensions one time in ten thousand."""
    event = event_of(mechanism)
    update = release(asked(mechanism, max_grad_norm=1000.0), event)
    if asked(mechanism).privacy.sends_scalars:  # in cells of its own bound: said in those of the bound that was asked
        scalars = (1e4 * update[0].state["scalars"].double()).clamp(-(2.0**31), 2.0**31 - 1).to(torch.int32)
        update = dataclasses.replace(update[0], state={"scalars": scalars}), update[1]
    with pytest.raises(UpdateRejectedError) as rejected:
        check_promised_norm(asked(mechanism), event, *update)
    assert rejected.value.reason is Reason.NORM and "by its clipping and the noise" in str(rejected.value)


@pytest.mark.parametrize(
    ("mechanism", "optimizer", "times"),
    [("update-gaussian", "sgd", 100), ("update-gaussian", "adamw", 100), ("dp-sgd", "adamw", 4)],
)
def test_an_update_is_bounded_whatever_optimizer_made_it(mechanism: MechanismName, optimizer: str, times: int) -> None:
    """Steps of AdamW go about as far as their rate lets them, so that a few times that is too far."""
    wanted, event = asked(mechanism, optimizer=optimizer), event_of(mechanism)
    update, base = release(wanted, event)
    check_promised_norm(wanted, event, update, base)
    far = {name: base[name] + times * (tensor - base[name]) for name, tensor in update.state.items()}
    with pytest.raises(UpdateRejectedError):
        check_promised_norm(wanted, event, dataclasses.replace(update, state=far), base)


def test_one_loud_step_among_quiet_ones_is_refused() -> None:
    event = event_of("dpzero")
    update, base = release(asked("dpzero"), event)
    scalars = update.state["scalars"].clone()
    scalars[1] = 2**30
    with pytest.raises(UpdateRejectedError):
        check_promised_norm(asked("dpzero"), event, dataclasses.replace(update, state={"scalars": scalars}), base)


@pytest.mark.parametrize("mechanism", BOUNDED)
def test_more_noise_than_an_update_names_is_refused(mechanism: MechanismName) -> None:
    named = event_of(mechanism)
    loud = dataclasses.replace(named, parameters={**named.parameters, "noise_multiplier": 500.0})
    with pytest.raises(UpdateRejectedError):
        check_promised_norm(asked(mechanism), named, *release(asked(mechanism), loud))


def test_the_scalars_of_the_noise_that_lies_farthest_are_within_the_bound() -> None:
    """LMO-DP's noise has tails far heavier than a normal law's: a thousand draws, none refused."""
    event, base = event_of("lmo-dp"), {"a": torch.zeros(1)}
    noise = torch.from_numpy(event.law().sample(SecretSource(), 2000)).view(1000, 2)
    for row in noise:
        scalars = (row * 2.0**16).round().clamp(-(2.0**31), 2.0**31 - 1).to(torch.int32)
        check_promised_norm(
            asked("lmo-dp"), event, AdapterUpdate("x", NUM_EXAMPLES, None, {"scalars": scalars[None]}), base
        )


def test_gradients_that_grow_by_the_ratio_of_adamws_betas_reach_its_bound() -> None:
    """Where the inequality of Cauchy and Schwarz is an equation at every step."""
    wanted = dataclasses.replace(asked("dp-sgd", optimizer="adamw"), local_steps=50)
    moved = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = make_optimizer([moved], "adamw", wanted.learning_rate)
    for step in range(wanted.local_steps):
        moved.grad = torch.full((1,), -((0.999 / 0.9) ** step), dtype=torch.float64)
        optimizer.step()
    farthest, base = float(moved.detach()), {"a": torch.zeros(1)}
    for share, is_refused in ((1.0, False), (1.01, True)):
        update = AdapterUpdate("clinic", NUM_EXAMPLES, None, {"a": torch.tensor([share * farthest])})
        with pytest.raises(UpdateRejectedError) if is_refused else contextlib.nullcontext():
            check_promised_norm(wanted, event_of("dp-sgd"), update, base)
