"""Differential privacy as the model owner's side sees it: what a run file asks for, what it costs, what was spent."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fl_server.owner import RoundRecord
from fl_server.workspace import organisation
from scaleot_core.federation.messages import PrivacyRequest, PrivateRelease
from scaleot_core.figures import no_less
from scaleot_core.privacy import client_level
from scaleot_core.privacy.accountant import Accountant, epsilon_of
from scaleot_core.privacy.calibration import best_noise
from scaleot_core.privacy.client_level import ClientLevelNoise
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.private_rounds import AskedTraining, PrivacyBudget, named_event, noise_budget, round_event
from scaleot_core.privacy.units import unit_of
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
    accountant = Accountant()
    if noise := server_noise(run):
        return _server_lines(run, noise)
    lines, (unit, neighbouring) = [], unit_of(run.privacy.mechanism)
    for (client, event), records in zip(planned_events(run, partitions).items(), partitions, strict=False):
        epsilon = accountant.epsilon((event,), run.privacy.delta)
        lines.append(
            f"{client}: {len(records)} records, {event.noise} noise of standard deviation {event.law().stddev():.4g} "
            f"times the bound, sample rate {event.sample_rate:.4g}, {event.count} releases: epsilon {no_less(epsilon)} "
            f"at delta {run.privacy.delta:g} for {unit}, neighbouring data sets by {neighbouring}"
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
    rounds, delta, (unit, neighbouring) = run.federation.rounds, run.privacy.delta, client_level.CLIENT_UNIT
    lines = [
        f"server: updates clipped to {noise.max_update_norm:g}, gaussian noise of standard deviation "
        f"{noise.noise_multiplier:.4g} times the bound on the sum of {noise.cohort_size}, {rounds} releases: "
        f"epsilon {no_less(epsilon_of((noise.event(rounds),), delta))} at delta {delta:g} for {unit}, "
        f"neighbouring federations by {neighbouring}"
    ]
    if delta >= 1 / run.federation.clients:
        lines.append(f"warning: delta {delta:g} is not below one over the {run.federation.clients} clients")
    return lines


def check_privacy(run: RunFile, partitions: Sequence[Sequence[Record]], reporter: Reporter) -> None:
    """Says what privacy will cost before anything is computed, and refuses rounds that pass the budget.

    Raises:
        BudgetExhaustedError, InputError: as ``planned_events``.
    """
    for line in planned_lines(run, partitions):
        reporter.note(line)


def reported_privacy(run: RunFile, rounds: Iterable[RoundRecord]) -> ReportedPrivacy:
    """Returns what the accepted updates cost each client by the noise that it named."""
    mechanism = run.privacy.mechanism
    if mechanism == "none":
        return ReportedPrivacy(mechanism, None, None, None, ())
    if noise := server_noise(run):
        return _reported_by_server(run, noise, rounds)
    releases: dict[str, list[PrivateRelease]] = {}
    for record in rounds:
        for client, release in record.privacy.items():
            releases.setdefault(client, []).append(release)
    clients = tuple(_client(client, said, run.privacy.delta, mechanism) for client, said in sorted(releases.items()))
    most = max((client["epsilon_spent"] for client in clients), default=0.0)
    return ReportedPrivacy(mechanism, most, run.privacy.delta, unit_of(mechanism)[0], clients)


def _reported_by_server(run: RunFile, noise: ClientLevelNoise, rounds: Iterable[RoundRecord]) -> ReportedPrivacy:
    took_part = Counter(client for record in rounds for client in record.clients)
    events = {client: (noise.event(count),) for client, count in sorted(took_part.items())}
    unit = client_level.CLIENT_UNIT
    clients = tuple(_figures(client, event, run.privacy.delta, unit) for client, event in events.items())
    most = max((client["epsilon_spent"] for client in clients), default=0.0)
    return ReportedPrivacy(client_level.NAME, most, run.privacy.delta, unit[0], clients)


def _client(client: str, said: Sequence[PrivateRelease], delta: float, mechanism: str) -> Mapping[str, Any]:
    figures = _figures(client, [named_event(one) for one in said], delta, unit_of(mechanism))
    return figures | {"rounds": len(said)}


def _figures(client: str, events: Sequence[PrivacyEvent], delta: float, unit: tuple[str, str]) -> dict[str, Any]:
    statement = replace(Accountant().statement(events, delta), unit=unit[0], neighbouring=unit[1])
    return {
        "client": client,
        "epsilon_spent": statement.epsilon,
        "rounds": statement.releases,
        "releases": statement.releases,
        "noise_stddev": max(event.law().stddev() for event in events),
        "sample_rate": max(event.sample_rate for event in events),
        "statement": statement.sentence(),
    }
