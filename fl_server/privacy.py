"""Differential privacy as the model owner's side sees it: what a run file asks for, what it costs, what was spent."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fl_server.owner import RoundRecord
from fl_server.workspace import organisation
from scaleot_core.federation.messages import PrivacyRequest
from scaleot_core.figures import no_less
from scaleot_core.privacy import client_level
from scaleot_core.privacy.accountant import Accountant
from scaleot_core.privacy.calibration import best_noise
from scaleot_core.privacy.client_level import ClientLevelNoise
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.private_rounds import AskedTraining, PrivacyBudget, named_event, noise_budget, round_event
from scaleot_core.privacy.units import scope_of, unit_of
from scaleot_core.progress import Reporter
from scaleot_core.report import ReportedPrivacy
from scaleot_core.run_file import RunFile
from scaleot_core.seeds import derive_seed
from scaleot_core.training.data import Record


def asked_training(run: RunFile) -> AskedTraining | None:
    """Returns what the run file asks of its clients under a mechanism of theirs; ``None`` without one."""
    privacy, federation = run.privacy, run.federation
    if privacy.mechanism == "none":
        return None
    if privacy.mechanism == "client-level":  # the server's own affair
        return None
    request = PrivacyRequest(
        mechanism=privacy.mechanism,
        rounds=federation.rounds,
        max_grad_norm=privacy.max_grad_norm,
        num_directions=privacy.num_directions,
        smoothing=privacy.smoothing,
    )
    return AskedTraining(
        request,
        federation.local_steps,
        federation.batch_size,
        federation.learning_rate,
        federation.optimizer,
        derive_seed(run.seed, "federation"),
    )


def budget_of(run: RunFile) -> PrivacyBudget:
    """Returns every simulated data owner's budget."""
    return PrivacyBudget(run.privacy.epsilon, run.privacy.delta, run.privacy.noise_multiplier or None)


def server_noise(run: RunFile) -> ClientLevelNoise | None:
    """Returns the noise that the server itself adds; ``None`` unless the mechanism is client-level.

    Raises:
        BudgetExhaustedError, InputError: as ``client_level.client_level_noise``.
    """
    if run.privacy.mechanism != client_level.NAME:
        return None
    return client_level.client_level_noise(
        epsilon=run.privacy.epsilon,
        delta=run.privacy.delta,
        noise_multiplier=run.privacy.noise_multiplier or None,
        rounds=run.federation.rounds,
        max_update_norm=run.privacy.max_grad_norm,
        cohort_size=run.federation.clients_per_round,
    )


def own_privacy(run: RunFile) -> dict[str, Any] | None:
    """Returns what every simulated data owner's own file says of privacy; ``None`` without a mechanism of its own.

    Each declares the number of its records besides, which this leaves out.
    """
    if run.privacy.mechanism in ("none", client_level.NAME):
        return None
    own = {"epsilon": run.privacy.epsilon, "delta": run.privacy.delta, "mechanisms": [run.privacy.mechanism]}
    return own | ({"noise_multiplier": run.privacy.noise_multiplier} if run.privacy.noise_multiplier else {})


def planned_events(run: RunFile, partitions: Sequence[Sequence[Record]]) -> dict[str, PrivacyEvent]:
    """Returns what all planned rounds cost each data owner that is in every cohort; empty without a mechanism.

    Raises:
        BudgetExhaustedError: with the run file's own noise the rounds pass the budget; it says how many fit.
        InputError: no noise keeps the budget.
    """
    asked = asked_training(run)
    if asked is None:
        return {}
    events = {
        organisation(number): round_event(asked, len(records), budget_of(run))
        for number, records in enumerate(partitions)
    }
    return {client: event.times(run.federation.rounds) for client, event in events.items()}


def planned_lines(run: RunFile, partitions: Sequence[Sequence[Record]]) -> list[str]:
    """Says, for people, what noise each data owner will add and what all rounds cost it; raises as the events do."""
    if noise := server_noise(run):
        return _server_lines(run, noise)
    lines, unit = [], unit_of(run.privacy.mechanism)
    for (client, event), records in zip(planned_events(run, partitions).items(), partitions, strict=False):
        lines.append(
            f"{client}: {len(records)} records, {event.noise} noise of standard deviation {event.law().stddev():.4g} "
            f"times the bound, {_cost(event, run.privacy.delta, unit)}"
        )
        if run.privacy.delta >= 1 / max(len(records), 1):
            lines.append(
                f"warning: {client}: delta {run.privacy.delta:g} is not below one over its {len(records)} records: "
                "a mechanism that publishes one record at random would pass"
            )
    return lines


def compared_noises(run: RunFile, partitions: Sequence[Sequence[Record]]) -> list[str]:
    """Says which noise would be the least for the first data owner's scalars, and how all others compare.

    Nothing is said of a mechanism that releases more numbers, where Gaussian noise has no rival, nor of a data owner's
    own multiplier.
    """
    asked, budget = asked_training(run), budget_of(run)
    if asked is None or not asked.privacy.sends_scalars or budget.noise_multiplier is not None:
        return []
    choice = best_noise(noise_budget(asked, len(partitions[0]), budget))
    return [f"least for {organisation(0)}: {choice.sentence()}"]


def _server_lines(run: RunFile, noise: ClientLevelNoise) -> list[str]:
    delta = run.privacy.delta
    lines = [
        f"server: updates clipped to {noise.max_update_norm:g}, gaussian noise of standard deviation "
        f"{noise.noise_multiplier:.4g} times the bound on the sum of {noise.cohort_size}, "
        f"{_cost(noise.event(run.federation.rounds), delta, client_level.CLIENT_UNIT)}"
    ]
    if delta >= 1 / run.federation.clients:
        lines.append(f"warning: delta {delta:g} is not below one over the {run.federation.clients} clients")
    return lines


def _cost(event: PrivacyEvent, delta: float, unit: tuple[str, str]) -> str:
    statement = Accountant().statement((event,), delta, unit=unit)
    return f"{event.count} releases: epsilon {no_less(statement.epsilon)} {statement.scope.at_delta(delta)}"


def check_privacy(run: RunFile, partitions: Sequence[Sequence[Record]], reporter: Reporter) -> None:
    """Says what privacy will cost before anything is computed, and refuses rounds that pass the budget.

    Raises:
        BudgetExhaustedError, InputError: as ``planned_events``.
    """
    for line in planned_lines(run, partitions):
        reporter.note(line)


def planned_budget(run: RunFile, partitions: Sequence[Sequence[Record]]) -> dict[str, Any]:
    """Returns, as JSON values, the budget that all planned rounds keep under a mechanism and what it is about.

    No noise is calibrated for it.

    Raises:
        InputError: a number is out of range.
    """
    if asked := asked_training(run):
        rates = [noise_budget(asked, len(records), budget_of(run)).sample_rate for records in partitions]
        scope = scope_of(unit_of(run.privacy.mechanism), rates)
    else:
        scope = scope_of(client_level.CLIENT_UNIT, [1.0])
    budget = {"mechanism": run.privacy.mechanism, "epsilon": run.privacy.epsilon, "delta": run.privacy.delta}
    return budget | scope.to_json()


def reported_privacy(run: RunFile, rounds: Iterable[RoundRecord]) -> ReportedPrivacy:
    """Returns what the accepted updates cost each client by the noise that it named."""
    mechanism = run.privacy.mechanism
    if mechanism == "none":
        return ReportedPrivacy(mechanism, None, None, None, ())
    events: dict[str, list[PrivacyEvent]] = {}
    if noise := server_noise(run):
        for client in (client for record in rounds for client in record.clients):
            events.setdefault(client, []).append(noise.event(1))
        return _reported(run, events, client_level.CLIENT_UNIT)
    for record in rounds:
        for client, release in record.privacy.items():
            events.setdefault(client, []).append(named_event(release))
    return _reported(run, events, unit_of(mechanism))


def _reported(run: RunFile, events: Mapping[str, Sequence[PrivacyEvent]], unit: tuple[str, str]) -> ReportedPrivacy:
    """Returns the figures of each client's events, of which every round has one."""
    clients = tuple(_figures(client, events[client], run.privacy.delta, unit) for client in sorted(events))
    most = max((client["epsilon_spent"] for client in clients), default=0.0)
    scope = scope_of(unit, (event.sample_rate for charged in events.values() for event in charged))
    return ReportedPrivacy(run.privacy.mechanism, most, run.privacy.delta, scope, clients)


def _figures(client: str, events: Sequence[PrivacyEvent], delta: float, unit: tuple[str, str]) -> dict[str, Any]:
    statement = Accountant().statement(events, delta, unit=unit)
    return {
        "client": client,
        "epsilon_spent": statement.epsilon,
        "rounds": len(events),
        "releases": statement.releases,
        "noise_stddev": max(event.law().stddev() for event in events),
        "sample_rate": max(event.sample_rate for event in events),
        "statement": statement.sentence(),
    }
