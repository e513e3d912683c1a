"""Organisations that are asked no more until the operator has looked: three hard refusals within ten rounds."""

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from fl_server.round_store import BUSY_SECONDS, DATABASE_FILE
from fl_server.row_checksums import keep_checksums, make_checksums
from scaleot_core.errors import InputError

REFUSALS, ROUNDS = 3, 10


def suspended(hard_refusals: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """Returns the suspended organisations, by name, from the rounds of their hard refusals in ascending order.

    A suspension does not end by itself: who is not asked cannot be refused, so it would end in ten rounds of silence.
    """
    return tuple(
        sorted(
            client
            for client, rounds in hard_refusals.items()
            if any(last - first < ROUNDS for first, last in zip(rounds, rounds[REFUSALS - 1 :], strict=False))
        )
    )


def reinstate(run_directory: Path, organisation: str) -> None:
    """Forgets an organisation's refusals so far, so that it is asked again; a server may be running meanwhile.

    Raises:
        InputError: there are no rounds, or the organisation was never refused.
    """
    path = run_directory / DATABASE_FILE
    if not path.exists():
        raise InputError(f"no rounds at {path}")
    with closing(sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
        connection.execute("pragma synchronous = full")
        if not connection.execute(
            "select 1 from answer where client = ? and code is not null", (organisation,)
        ).fetchone():
            raise InputError(f"{organisation} was never refused in {path}; names are written as in `scaleot status`")
        connection.execute("begin immediate")
        make_checksums(connection)
        keep_checksums(connection)
        connection.execute(
            "insert or replace into reinstatement (client, round) values (?, (select max(number) from round))",
            (organisation,),
        )
        connection.execute("commit")
