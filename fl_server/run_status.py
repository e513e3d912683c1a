"""Where a run stands, for people: read beside a running server, which it neither waits for nor disturbs."""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fl_server.owner import OwnerRunSettings, RoundRecord, read_settings
from fl_server.round_state import Round
from fl_server.round_store import BUSY_SECONDS, DATABASE_FILE, hard_refusals
from fl_server.round_tables import read_round
from fl_server.row_checksums import check_checksums
from fl_server.suspension import suspended
from scaleot_core.errors import Reason, StoreError

WAITING = "WAITING"
"""The state of a run whose first round has not begun."""


@dataclass(frozen=True)
class AskedClient:
    """One organisation of the newest round."""

    client: str
    attempt: int
    asked_at: datetime
    status: str
    """``waiting``, ``accepted``, ``refused`` or ``late``."""
    code: str | None
    """A ``Reason``; of one that is waited for, what came back to an earlier attempt."""
    detail: str | None
    answered_at: datetime | None

    @property
    def is_waited_for(self) -> bool:
        """Whether the round waits for it."""
        return self.status == "waiting"


@dataclass(frozen=True)
class FinishedRound:
    """A round that ended."""

    round_number: int
    state: str
    train_loss: float | None
    canary_loss: float | None
    clients: tuple[str, ...]
    refused: Mapping[str, str]
    """The code of each refusal, by organisation."""
    flags: Mapping[str, tuple[str, ...]]
    """What is odd about updates; nobody is refused for it."""
    seconds: float


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands."""

    run: str
    rounds: int
    """Planned."""
    round_number: int
    """Of the newest round; 0 before the first."""
    state: str
    """A ``RoundState``, or ``WAITING``."""
    reason: str | None
    """Why the newest round was aborted."""
    is_finished: bool
    opened_at: datetime | None
    deadline: datetime | None
    quorum: int
    """Updates without which the round does not close."""
    wanted: int
    """Updates at which it closes at once."""
    asked: tuple[AskedClient, ...]
    suspended: tuple[str, ...]
    """Organisations that are not asked until the operator has looked."""
    history: tuple[FinishedRound, ...]
    """Oldest first."""


def read_status(run_directory: Path) -> RunStatus:
    """Returns where the run of a directory stands.

    Raises:
        InputError: there is no run, or its settings are malformed.
        StoreError: its durable state is damaged.
    """
    settings, path = read_settings(run_directory), run_directory / DATABASE_FILE
    if not path.exists():
        return _status(settings, None, (), ())
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)) as reading:
            if not reading.execute("select 1 from sqlite_master where name = 'round'").fetchone():
                return _status(settings, None, (), ())
            reading.execute("begin")  # one moment of the server's for all that follows
            check_checksums(reading, str(path))
            query = "select state, record from round where state in ('COMMITTED', 'ABORTED') order by number"
            history = tuple(_finished(state, record) for state, record in reading.execute(query))
            return _status(settings, read_round(reading), suspended(hard_refusals(reading)), history)
    except sqlite3.DatabaseError as error:
        raise StoreError(str(path), f"cannot be read: {error}") from error


def _status(
    settings: OwnerRunSettings, current: Round | None, left_out: tuple[str, ...], history: tuple[FinishedRound, ...]
) -> RunStatus:
    return RunStatus(
        run=settings.run,
        rounds=settings.rounds,
        round_number=current.number if current else 0,
        state=current.state.value if current else WAITING,
        reason=current.reason if current else None,
        is_finished=current is not None and current.state.is_over and current.number >= settings.rounds,
        opened_at=current.opened_at if current else None,
        deadline=current.deadline if current else None,
        quorum=settings.quorum,
        wanted=settings.clients_per_round,
        asked=tuple(_asked(current, client) for client in current.cohort) if current else (),
        suspended=left_out,
        history=history,
    )


def _asked(current: Round, client: str) -> AskedClient:
    attempt, outcome = current.attempts(client), current.outcome(client)
    status = "waiting"
    if outcome is not None and outcome.is_accepted:
        status = "accepted"
    elif outcome is not None and outcome.code in (Reason.TIMEOUT, Reason.STALE):
        status = "late"
    elif outcome is not None and (outcome.is_final or current.is_answered(current.assignment(client, attempt))):
        status = "refused"
    return AskedClient(
        client=client,
        attempt=attempt,
        asked_at=current.assignment(client, attempt).asked_at,
        status=status,
        code=outcome.code.value if outcome is not None and outcome.code is not None else None,
        detail=outcome.detail or None if outcome is not None else None,
        answered_at=outcome.answered_at if outcome is not None else None,
    )


def _finished(state: str, encoded: str) -> FinishedRound:
    record = RoundRecord.model_validate_json(encoded)
    return FinishedRound(
        round_number=record.round,
        state=state,
        train_loss=record.train_loss,
        canary_loss=record.canary_loss,
        clients=record.clients,
        refused={one.client: one.reason for one in record.rejected},
        flags=record.flags,
        seconds=record.seconds,
    )
