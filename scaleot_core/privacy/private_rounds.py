"""Private rounds from both ends: a data owner's mechanism from what is asked and its budget, the server's next step.

The data owner lays its budget out over all rounds that the server plans, once and in the same way every round, so that
no round needs to know what another did. The divisor of every sum is the batch size that was asked for, public and the
same for all clients; a data owner that declares fewer records than that takes all of them in every step.

``num_examples`` is everywhere the number that a data owner declares, a public constant: of neighbouring data sets,
which have one record more or less, the true numbers differ, and neither a rate nor a weight may follow from them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from scaleot_core.errors import InputError, Reason, RoundFailedError, UpdateRejectedError
from scaleot_core.federation.averaging import FederationState, RoundOutcome
from scaleot_core.federation.messages import PrivacyRequest, PrivateRelease
from scaleot_core.federation.validation import SCALARS, AdapterUpdate, ExpectedScalars
from scaleot_core.privacy.accountant import epsilon_of
from scaleot_core.privacy.calibration import NoiseBudget, calibrate, check_rounds_fit, noisiest
from scaleot_core.privacy.directions import direction_key
from scaleot_core.privacy.discrete_gaussian import CELLS_PER_UNIT
from scaleot_core.privacy.dp_sgd import DPSGD
from scaleot_core.privacy.dpzero import DPZero
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.lmo_dp import LMODP
from scaleot_core.privacy.mechanism import MECHANISMS, Mechanism
from scaleot_core.privacy.replay import ScalarSteps, mean_scalars, replay
from scaleot_core.privacy.units import unit_of
from scaleot_core.privacy.update_noise import UpdateGaussian
from scaleot_core.privacy.zeroth_order import ZerothOrder
from scaleot_core.shapes import TensorDict
from scaleot_core.training.local import LocalTraining

_TRIAL_DELTA = 1e-5


@dataclass(frozen=True)
class AskedTraining:
    """What a server asks of its clients in every round; all of it is public."""

    privacy: PrivacyRequest
    local_steps: int
    batch_size: int
    """Expected: Poisson samples differ."""
    learning_rate: float
    optimizer: Literal["adamw", "sgd"]
    """Of dp-sgd and update-gaussian; scalars are steps of plain gradient descent."""
    seed: int
    """Of the run: it names the directions."""

    @property
    def noise(self) -> str:
        """The law of the mechanism's noise."""
        return MECHANISMS[self.privacy.mechanism].calibrated_noise

    @property
    def releases_per_round(self) -> int:
        """How often a round adds noise."""
        return 1 if self.privacy.mechanism == UpdateGaussian.name else self.local_steps


@dataclass(frozen=True)
class PrivacyBudget:
    """What a data owner is ready to spend."""

    epsilon: float
    delta: float
    noise_multiplier: float | None = None
    """``None`` takes the least noise that keeps the budget over all planned rounds."""


@lru_cache(maxsize=64)
def round_event(
    asked: AskedTraining, num_examples: int, budget: PrivacyBudget, spent: tuple[PrivacyEvent, ...] = ()
) -> PrivacyEvent:
    """Returns what each round costs a data owner that declares ``num_examples`` records.

    ``spent`` is what other runs were charged.

    Raises:
        BudgetExhaustedError: the planned rounds pass the budget, with the data owner's own noise, or with any; it says
            how many fit.
        InputError: a number is out of range.
    """
    request, noise = asked.privacy, asked.noise
    sample_rate, unit = _sample_rate(asked, num_examples), unit_of(request.mechanism)
    if budget.noise_multiplier is not None:
        parameters = {"noise_multiplier": budget.noise_multiplier}
        if noise == "discrete-gaussian":
            parameters["cells_per_unit"] = CELLS_PER_UNIT
        event = PrivacyEvent(noise, parameters, sample_rate, asked.releases_per_round)
        check_rounds_fit((event,), request.rounds, budget.epsilon, budget.delta, spent=spent, unit=unit)
        return event
    whole_run = noise_budget(asked, num_examples, budget)
    one_round = replace(whole_run, count=asked.releases_per_round)
    try:
        calibrated = calibrate(noise, whole_run, spent=spent)
    except InputError:
        most_noise = noisiest(noise, one_round)
        check_rounds_fit((most_noise,), request.rounds, budget.epsilon, budget.delta, spent=spent, unit=unit)
        raise
    return PrivacyEvent(noise, calibrated.parameters, sample_rate, one_round.count)


def noise_budget(asked: AskedTraining, num_examples: int, budget: PrivacyBudget) -> NoiseBudget:
    """Returns what the noise of all planned rounds is calibrated to.

    A release that is no scalars counts as one coordinate: its Gaussian's scale does not depend on how many there are.

    Raises:
        InputError: a number is out of range.
    """
    request = asked.privacy
    return NoiseBudget(
        budget.epsilon,
        budget.delta,
        _sample_rate(asked, num_examples),
        count=request.rounds * asked.releases_per_round,
        dimension=request.num_directions if request.sends_scalars else 1,
        norm="L1" if asked.noise == "lmo" else "L2",
        unit=unit_of(request.mechanism),
    )


def asks_for(asked: AskedTraining, event: PrivacyEvent, num_examples: int) -> bool:
    """Tells whether a round of what is asked is one ``event``, at whatever scale its noise was calibrated to."""
    said = {"sample_rate": event.sample_rate, **event.parameters}
    return (event.noise, event.count) == (asked.noise, asked.releases_per_round) and all(
        said.get(name) == value for name, value in _fixed_numbers(asked, num_examples).items()
    )


def _fixed_numbers(asked: AskedTraining, num_examples: int) -> dict[str, float]:
    """Returns what of a round's event follows from what is asked, by name: all but how much noise there is."""
    fixed = {"sample_rate": _sample_rate(asked, num_examples)}
    match asked.noise:
        case "discrete-gaussian":
            fixed["cells_per_unit"] = CELLS_PER_UNIT
        case "lmo":
            fixed["dimension"] = float(asked.privacy.num_directions)
    return fixed


def _sample_rate(asked: AskedTraining, num_examples: int) -> float:
    if asked.privacy.mechanism == UpdateGaussian.name:
        return 1.0
    return min(1.0, asked.batch_size / max(num_examples, 1))


def mechanism_for_round(
    asked: AskedTraining,
    event: PrivacyEvent,
    *,
    round_number: int,
    batch_seed: int,
    recomputes_activations: bool,
) -> Mechanism:
    """Returns the mechanism whose round costs exactly ``event``.

    ``batch_seed`` orders the batches of a mechanism that draws no secret sample.

    Raises:
        InputError: the settings do not go together.
    """
    request, parameters = asked.privacy, event.parameters
    match request.mechanism:
        case "dp-sgd":
            return DPSGD(
                steps=asked.local_steps,
                sample_rate=event.sample_rate,
                expected_batch_size=float(asked.batch_size),
                max_grad_norm=request.max_grad_norm,
                noise_multiplier=parameters["noise_multiplier"],
                learning_rate=asked.learning_rate,
                optimizer=asked.optimizer,
                recomputes_activations=recomputes_activations,
            )
        case "dpzero":
            zeroth_order = _zeroth_order(asked, event.sample_rate, round_number)
            return DPZero(zeroth_order, noise_multiplier=parameters["noise_multiplier"])
        case "lmo-dp":
            law = {name: value for name, value in parameters.items() if name != "dimension"}
            return LMODP(_zeroth_order(asked, event.sample_rate, round_number), law)
        case "update-gaussian":
            training = LocalTraining(
                asked.local_steps,
                asked.batch_size,
                asked.learning_rate,
                asked.optimizer,
                gradient_checkpointing=recomputes_activations,
            )
            return UpdateGaussian(training, batch_seed, request.max_grad_norm, parameters["noise_multiplier"])


def scalar_steps(asked: AskedTraining, round_number: int) -> ScalarSteps:
    """Returns how a round's scalars move the adapter: the same for every client, whatever its sample rate."""
    return _zeroth_order(asked, 1.0, round_number).scalar_steps


def expected_scalars(asked: AskedTraining, round_number: int, adapter_size: int) -> ExpectedScalars:
    """Returns what stands in a round's update of scalars; ``adapter_size`` counts the adapter's numbers."""
    unit_norm = abs(scalar_steps(asked, round_number).scale) * math.sqrt(adapter_size)
    return ExpectedScalars(asked.local_steps, asked.privacy.num_directions, unit_norm)


def named_event(release: PrivateRelease) -> PrivacyEvent:
    """Returns the event that a client names; raises ``InputError`` where there is none of that kind."""
    return PrivacyEvent(release.noise, release.parameters, release.sample_rate, release.count)


def promised_event(asked: AskedTraining, client: str, release: PrivateRelease, num_examples: int) -> PrivacyEvent:
    """Returns what an update's noise costs by the client's own words, if they fit what was asked.

    A promise, not a proof: nobody but the client sees its noise.

    Raises:
        UpdateRejectedError: the noise is another mechanism's or on another lattice, there are more or fewer releases
            than were asked for, or the sampling is not that of ``num_examples`` records.
    """
    wanted = (asked.noise, asked.releases_per_round)
    if (release.noise, release.count) != wanted:
        expected = f"{wanted[1]} releases under {wanted[0]} noise"
        got = f"{release.count} under {release.noise}"
        raise UpdateRejectedError(Reason.PRIVACY, client=client, expected=expected, got=got)
    said = {"sample_rate": release.sample_rate, **release.parameters}
    for name, value in _fixed_numbers(asked, num_examples).items():
        if said.get(name) != value:
            raise UpdateRejectedError(
                Reason.PRIVACY, client=client, expected=f"{name} {value:.9g}", got=str(said.get(name))
            )
    try:
        event = named_event(release)
        event.law().stddev()
        epsilon_of((event,), _TRIAL_DELTA)  # as the report will, when all rounds are done and nobody can be refused
    except (InputError, ArithmeticError, ValueError) as error:
        raise UpdateRejectedError(
            Reason.PRIVACY, client=client, expected="the parameters of a noise", got=str(error)
        ) from error
    return event


def advance_by_scalars(state: FederationState, updates: Iterable[AdapterUpdate], asked: AskedTraining) -> RoundOutcome:
    """Returns the next state: ``moved_by_mean`` of all clients' scalars, each weighted by its examples.

    The order of updates makes no difference: sums are of integers.

    Raises:
        RoundFailedError: there is no update.
    """
    accepted = list(updates)  # a few kilobytes each
    round_number = state.rounds_done + 1
    if not accepted:
        raise RoundFailedError(f"round {round_number} has no accepted update")
    scalars = [update.state for update in accepted]
    weights = [update.num_examples for update in accepted]
    adapter = moved_by_mean(state.adapter, scalars, weights, asked, round_number)
    return RoundOutcome(FederationState(round_number, adapter), tuple(update.client for update in accepted), None)


def moved_by_mean(
    adapter: TensorDict, scalars: Sequence[TensorDict], weights: Sequence[int], asked: AskedTraining, round_number: int
) -> TensorDict:
    """Returns the replay of the weighted mean of clients' scalars on the round's adapter.

    Along shared directions that is the mean of the clients' adapters (see ``replay``).
    """
    mean = mean_scalars([one[SCALARS].numpy() for one in scalars], weights)
    return replay(adapter, mean, scalar_steps(asked, round_number))


def _zeroth_order(asked: AskedTraining, sample_rate: float, round_number: int) -> ZerothOrder:
    return ZerothOrder(
        steps=asked.local_steps,
        sample_rate=sample_rate,
        expected_batch_size=float(asked.batch_size),
        max_grad_norm=asked.privacy.max_grad_norm,
        learning_rate=asked.learning_rate,
        direction_key=direction_key(asked.seed),
        num_directions=asked.privacy.num_directions,
        first_step=(round_number - 1) * asked.local_steps,
        smoothing=asked.privacy.smoothing,
    )
