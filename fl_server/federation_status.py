"""Where a deployed federation stands: who is enrolled, who is there, and whom the round waits for and why.

Everything is read from the files that the parts of ``scaleot serve`` keep, beside them and without disturbing them.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fl_server.deployment import SEEN_FILE, STATE_DIRECTORY
from fl_server.downloads import DOWNLOADS_FILE, read_downloads
from fl_server.new_run import RUN_DIRECTORY
from fl_server.owner import has_run
from fl_server.owner_home import OwnerHome
from fl_server.registry import Member, Registry
from fl_server.run_status import AskedClient, RunStatus, read_status
from fl_server.training_steps import TRAINING_FILE, read_training_steps
from scaleot_core.bundle.distribution import TrainingRequest

ONLINE_SECONDS = 45.0
"""A node asks for work every three seconds; who was not heard of for so long is away."""
TUNED_REPORT = "tuned/report.json"


@dataclass(frozen=True)
class OrganisationStatus:
    """One organisation, whether or not it takes part in the newest round."""

    name: str
    membership: str
    """``active`` or ``revoked``."""
    is_online: bool
    last_seen: datetime | None
    fetched_share: float | None
    """Of the newest emulator, between 0 and 1, since the service started; ``None`` where nothing was fetched since."""
    training: TrainingRequest | None
    """How far it says that its training for the newest round is; ``None`` where it has said nothing of it."""
    doing: str
    """In words: what it does in the newest round."""


@dataclass(frozen=True)
class FederationStatus:
    """Everything that ``scaleot status`` tells."""

    at: datetime
    organisations: tuple[OrganisationStatus, ...]
    run: RunStatus | None
    """``None`` before the first start of ``scaleot serve``."""
    waits_for: tuple[str, ...]
    """In words: each organisation that the round waits for, and why."""
    results: dict[str, Any] | None
    """What ``scaleot plug-in`` measured, where it has."""


def read_federation_status(home: Path, *, now: datetime) -> FederationStatus:
    """Reads the state of a model owner's home.

    Raises:
        InputError: the home, or its run, is missing or malformed.
        ChainError, StoreError: the registry or the durable state of the rounds is damaged.
    """
    run = read_status(home / RUN_DIRECTORY) if has_run(home / RUN_DIRECTORY) else None
    seen = _seen(home)
    shares = read_downloads(home / STATE_DIRECTORY / DOWNLOADS_FILE)
    members = Registry(OwnerHome(home).registry).members()
    steps = read_training_steps(home / STATE_DIRECTORY / TRAINING_FILE)
    organisations = tuple(
        _organisation(
            member, run, now, last=seen.get(member.name), share=shares.get(member.name), said=steps.get(member.name)
        )
        for member in members
    )
    return FederationStatus(now, organisations, run, _waits_for(organisations, run, now), _results(home))


def to_json(status: FederationStatus) -> str:
    """Returns one JSON document; times are ISO 8601 in UTC."""
    return json.dumps(_plain(status), indent=2, allow_nan=False)


def _organisation(
    member: Member,
    run: RunStatus | None,
    now: datetime,
    *,
    last: datetime | None,
    share: float | None,
    said: TrainingRequest | None,
) -> OrganisationStatus:
    is_online = last is not None and now - last < timedelta(seconds=ONLINE_SECONDS)
    asked = _asked(run, member.name)
    told = _told(run, asked, said)
    if share is not None and share < 1.0:
        doing = f"fetching the emulator, {share:.0%}"
    elif asked is None or (run is not None and run.is_finished):
        doing = "idle" if is_online else "away"
    elif asked.is_waited_for:
        doing = f"training, attempt {asked.attempt}{_step(told)}" if is_online else "asked, and away"
    else:
        doing = asked.status if asked.code is None else f"{asked.status} ({asked.code})"
    return OrganisationStatus(member.name, member.status.value, is_online, last, share, told, doing)


def _waits_for(organisations: tuple[OrganisationStatus, ...], run: RunStatus | None, now: datetime) -> tuple[str, ...]:
    if run is None or run.is_finished:
        return ()
    if not run.asked:
        away = [one.name for one in organisations if not one.is_online and one.membership == "active"]
        return tuple(f"{name}: not connected" for name in away)
    by_name = {one.name: one for one in organisations}
    return tuple(_why(asked, by_name.get(asked.client), now) for asked in run.asked if asked.is_waited_for)


def _why(asked: AskedClient, organisation: OrganisationStatus | None, now: datetime) -> str:
    seconds = (now - asked.asked_at).total_seconds()
    earlier = "" if asked.code is None else f", after {asked.code} to the attempt before"
    if organisation is None or not organisation.is_online:
        seen = None if organisation is None else organisation.last_seen
        last = "never seen" if seen is None else f"last seen {seen:%H:%M:%S} UTC"
        return f"{asked.client}: not connected, {last}; asked {seconds:.0f} s ago{earlier}"
    return f"{asked.client}: training for {seconds:.0f} s{_step(organisation.training)}{earlier}"


def _told(run: RunStatus | None, asked: AskedClient | None, said: TrainingRequest | None) -> TrainingRequest | None:
    """Returns what an organisation said, if that is about what the newest round waits for."""
    if run is None or asked is None or said is None or not asked.is_waited_for:
        return None
    return said if (said.round, said.attempt) == (run.round_number, asked.attempt) else None


def _step(told: TrainingRequest | None) -> str:
    return "" if told is None else f", step {told.step} of {told.steps}"


def _asked(run: RunStatus | None, name: str) -> AskedClient | None:
    return next((asked for asked in run.asked if asked.client == name), None) if run else None


def _seen(home: Path) -> dict[str, datetime]:
    try:
        stamps = json.loads((home / STATE_DIRECTORY / SEEN_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return {name: datetime.fromtimestamp(seconds, UTC) for name, seconds in stamps.items()}


def _results(home: Path) -> dict[str, Any] | None:
    try:
        results: dict[str, Any] = json.loads((home / TUNED_REPORT).read_bytes())["results"]
    except (OSError, ValueError, KeyError):
        return None
    return results


def _plain(value: object) -> object:
    """Returns a value in what JSON can say."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, TrainingRequest):
        return value.model_dump()
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return value
