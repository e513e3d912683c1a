"""The tables of ``rounds.db``, and a round as its rows."""

import sqlite3
from datetime import datetime

from fl_server.round_state import Answer, Assignment, Round, RoundState
from scaleot_core.errors import Reason

FORMAT = "scaleot.rounds.db/1"

SCHEMA = """
create table if not exists run (format text not null, name text not null, epoch integer not null);
create table if not exists round (
    number integer primary key, base_sha256 text not null, opened_at text not null, deadline text not null,
    state text not null, aggregate_sha256 text, reason text, record text);
create table if not exists assignment (
    round integer not null references round, client text not null, attempt integer not null, nonce text not null,
    asked_at text not null, primary key (round, client, attempt));
create table if not exists answer (
    round integer not null references round, client text not null, attempt integer not null,
    answered_at text not null, code text, detail text not null, update_sha256 text, envelope blob not null,
    size_bytes integer not null, position integer not null, primary key (round, client, attempt));
create table if not exists receipt (
    round integer not null references round, client text not null, envelope blob not null,
    is_delivered integer not null default 0, primary key (round, client));
create table if not exists event (id integer primary key autoincrement, type text not null, body text not null);
create table if not exists reinstatement (client text primary key, round integer not null);
"""

_ROUND = "number, base_sha256, opened_at, deadline, state, aggregate_sha256, reason"
_ASSIGNMENT = "client, attempt, nonce, asked_at"
_ANSWER = "client, attempt, answered_at, code, detail, update_sha256, envelope, size_bytes"


def read_round(connection: sqlite3.Connection, number: int | None = None) -> Round | None:
    """Returns a round, the newest one unless ``number`` says which; ``None`` if there is none."""
    chosen = "(select max(number) from round)" if number is None else "?"
    row = connection.execute(
        f"select {_ROUND} from round where number = {chosen}",  # noqa: S608 - names of our own
        () if number is None else (number,),
    ).fetchone()
    if row is None:
        return None
    return Round(
        number=row[0],
        base_sha256=row[1],
        opened_at=datetime.fromisoformat(row[2]),
        deadline=datetime.fromisoformat(row[3]),
        state=RoundState(row[4]),
        assignments=_read_assignments(connection, row[0]),
        answers=read_answers(connection, row[0]),
        aggregate_sha256=row[5],
        reason=row[6],
    )


def read_answers(connection: sqlite3.Connection, number: int) -> tuple[Answer, ...]:
    """Returns the answers in a round, in the order in which they came."""
    return _answers(connection, "round = ? order by position", (number,))


def read_answers_of(connection: sqlite3.Connection, client: str, *, before: int) -> tuple[Answer, ...]:
    """Returns a client's answers in the rounds before one, in the order in which they came."""
    return _answers(connection, "client = ? and round < ? order by round, position", (client, before))


def _answers(connection: sqlite3.Connection, where: str, values: tuple[str | int, ...]) -> tuple[Answer, ...]:
    rows = connection.execute(f"select {_ANSWER} from answer where {where}", values)  # noqa: S608 - words of our own
    return tuple(
        Answer(
            client=row[0],
            attempt=row[1],
            answered_at=datetime.fromisoformat(row[2]),
            code=None if row[3] is None else Reason(row[3]),
            detail=row[4],
            update_sha256=row[5],
            envelope=row[6],
            size_bytes=row[7],
        )
        for row in rows
    )


def write_round(connection: sqlite3.Connection, current: Round) -> None:
    """Writes what a round is itself, without its assignments and answers."""
    connection.execute(
        "insert into round (number, base_sha256, opened_at, deadline, state, aggregate_sha256, reason) "
        "values (?, ?, ?, ?, ?, ?, ?) on conflict (number) do update set state = excluded.state, "
        "deadline = excluded.deadline, aggregate_sha256 = excluded.aggregate_sha256, reason = excluded.reason",
        (
            current.number,
            current.base_sha256,
            current.opened_at.isoformat(),
            current.deadline.isoformat(),
            current.state.value,
            current.aggregate_sha256,
            current.reason,
        ),
    )


def write_clients(connection: sqlite3.Connection, current: Round, clients: frozenset[str]) -> None:
    """Writes the assignments and answers of some clients of a round."""
    for assignment in current.assignments:
        if assignment.client in clients:
            connection.execute(
                f"insert or ignore into assignment (round, {_ASSIGNMENT}) "  # noqa: S608 - names of our own
                "values (?, ?, ?, ?, ?)",
                (
                    current.number,
                    assignment.client,
                    assignment.attempt,
                    assignment.nonce,
                    assignment.asked_at.isoformat(),
                ),
            )
    for position, answer in enumerate(current.answers):
        if answer.client in clients:
            connection.execute(
                f"insert or replace into answer (round, {_ANSWER}, position) "  # noqa: S608 - names of our own
                "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    current.number,
                    answer.client,
                    answer.attempt,
                    answer.answered_at.isoformat(),
                    None if answer.code is None else answer.code.value,
                    answer.detail,
                    answer.update_sha256,
                    answer.envelope,
                    answer.size_bytes,
                    position,
                ),
            )


def _read_assignments(connection: sqlite3.Connection, number: int) -> tuple[Assignment, ...]:
    rows = connection.execute(
        f"select {_ASSIGNMENT} from assignment where round = ? order by client, attempt",  # noqa: S608 - our own names
        (number,),
    )
    return tuple(Assignment(row[0], row[1], row[2], datetime.fromisoformat(row[3])) for row in rows)
