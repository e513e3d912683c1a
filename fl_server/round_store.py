"""The durable state of a run's rounds: what a restart goes on from, whenever the process died.

The order of every write is: bytes first (``blob_store``), then the row that names them, in one transaction that is on
the disk when it returns (SQLite, WAL, ``synchronous = FULL``), then whatever the outside world is told. ``rounds.json``
and the adapters' files are copies for people, written anew from here.

One process writes. ``rounds.lock`` keeps others out; and since a lock can be lost with its file, every transaction
checks that no later process has opened the store since.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_server.blob_store import QUARANTINE_DIRECTORY, BlobStore
from fl_server.owner import RoundRecord
from fl_server.round_state import HARD_REASONS, Answer, Round
from fl_server.round_tables import FORMAT, SCHEMA, read_answers_of, read_round, write_clients, write_round
from fl_server.row_checksums import check_checksums, keep_checksums, make_checksums
from fl_server.run_lock import locked_run
from scaleot_core.errors import InputError, OutputError, StoreError

DATABASE_FILE = "rounds.db"
BUSY_SECONDS = 10.0


@dataclass(frozen=True)
class Event:
    """What is to go into the audit log; it waits in the store, so that no crash loses it."""

    number: int
    type: str
    body: Mapping[str, Any]


class RoundStore:
    """The rounds of one run, open for writing; ``open_round_store`` makes it. For one thread."""

    def __init__(self, directory: Path, connection: sqlite3.Connection, epoch: int) -> None:
        self.blobs = BlobStore(directory)
        self._source = str(directory / DATABASE_FILE)
        self._connection, self._epoch = connection, epoch

    def newest(self) -> Round | None:
        """Returns the newest round; ``None`` before the first."""
        return read_round(self._connection)

    def round(self, number: int) -> Round | None:
        """Returns a round; ``None`` if there is none of this number."""
        return read_round(self._connection, number)

    def save(
        self,
        current: Round,
        *,
        clients: Sequence[str] = (),
        record: RoundRecord | None = None,
        events: Sequence[tuple[str, Mapping[str, Any]]] = (),
    ) -> Round:
        """Writes a round, the assignments and answers of ``clients``, its record and its events: all or nothing.

        Raises:
            OutputError: the disk is full or cannot be written.
            StoreError: another process has opened the store since.
        """
        with self._transaction() as connection:
            write_round(connection, current)
            write_clients(connection, current, frozenset(clients))
            if record is not None:
                connection.execute(
                    "update round set record = ? where number = ?", (record.model_dump_json(), current.number)
                )
            for type_, body in events:
                connection.execute("insert into event (type, body) values (?, ?)", (type_, json.dumps(body)))
        return current

    def answers_of(self, client: str, *, before: int) -> tuple[Answer, ...]:
        """Returns a client's answers in the rounds before one, oldest first."""
        return read_answers_of(self._connection, client, before=before)

    def records(self) -> tuple[RoundRecord, ...]:
        """Returns the records of the rounds that have one, oldest first."""
        rows = self._connection.execute("select record from round where record is not null order by number")
        return tuple(RoundRecord.model_validate_json(row[0]) for row in rows)

    def record(self, number: int) -> RoundRecord:
        """Returns a round's record; raises ``StoreError`` if it has none."""
        row = self._connection.execute("select record from round where number = ?", (number,)).fetchone()
        if row is None or row[0] is None:
            raise StoreError(self._source, f"round {number} has no record")
        return RoundRecord.model_validate_json(row[0])

    def keep_needed_blobs(self) -> None:
        """Removes updates of rounds that are over, and adapters that nothing starts from any more."""
        current = self.newest()
        if current is None:
            return
        needed = {current.base_sha256, current.adapter_sha256, current.aggregate_sha256}
        if not current.state.is_over:
            needed |= {answer.update_sha256 for answer in current.accepted.values()}
        if (before := self.round(current.number - 1)) is not None:
            needed.add(before.base_sha256)
        self.blobs.keep_only(frozenset(digest for digest in needed if digest))

    def events(self) -> tuple[Event, ...]:
        """Returns the events that the audit log may not have yet."""
        rows = self._connection.execute("select id, type, body from event order by id")
        return tuple(Event(row[0], row[1], json.loads(row[2])) for row in rows)

    def forget_event(self, number: int) -> None:
        """Notes that the audit log has an event."""
        with self._transaction() as connection:
            connection.execute("delete from event where id = ?", (number,))

    def has_receipts(self, number: int) -> bool:
        """Whether a round's receipts are written."""
        query = "select exists (select 1 from receipt where round = ?)"
        return bool(self._connection.execute(query, (number,)).fetchone()[0])

    def save_receipts(self, number: int, receipts: Mapping[str, bytes]) -> None:
        """Writes the receipts of a round that is over; raises like ``save``."""
        with self._transaction() as connection:
            for client, envelope in receipts.items():
                connection.execute(
                    "insert into receipt (round, client, envelope) values (?, ?, ?)", (number, client, envelope)
                )

    def undelivered(self, client: str) -> dict[int, bytes]:
        """Returns an organisation's receipts that it has not confirmed, by round."""
        rows = self._connection.execute(
            "select round, envelope from receipt where client = ? and not is_delivered order by round", (client,)
        )
        return dict(rows.fetchall())

    def waiting_for_receipts(self) -> tuple[str, ...]:
        """Returns the organisations that have not confirmed all their receipts."""
        rows = self._connection.execute("select distinct client from receipt where not is_delivered order by client")
        return tuple(row[0] for row in rows)

    def confirm_receipts(self, client: str, rounds: Sequence[int]) -> None:
        """Notes that an organisation has its receipts of these rounds; raises like ``save``."""
        with self._transaction() as connection:
            for number in rounds:
                connection.execute(
                    "update receipt set is_delivered = 1 where round = ? and client = ?", (number, client)
                )

    def hard_refusals(self) -> dict[str, list[int]]:
        """Returns the rounds of each organisation's hard refusals since the operator last reinstated it."""
        return hard_refusals(self._connection)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection
        try:
            connection.execute("begin immediate")
            try:
                self._check_epoch()
                yield connection
                connection.execute("commit")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("rollback")
                raise
        except sqlite3.OperationalError as error:
            raise OutputError(
                f"{self._source} cannot be written: {error}. Nothing that was acknowledged is lost: make room and "
                "start the server again"
            ) from error

    def _check_epoch(self) -> None:
        if self._connection.execute("select epoch from run").fetchone() != (self._epoch,):
            raise StoreError(self._source, "another process has opened it since; this one writes no more")


def hard_refusals(connection: sqlite3.Connection) -> dict[str, list[int]]:
    """As ``RoundStore`` has it, on a connection that reads."""
    codes = sorted(HARD_REASONS)
    rows = connection.execute(
        "select distinct answer.client, answer.round from answer "
        "left join reinstatement on reinstatement.client = answer.client "
        "where code in (select value from json_each(?)) and length(envelope) > 0 "
        "and answer.round > coalesce(reinstatement.round, 0) order by answer.round",
        (json.dumps(codes),),
    )
    refusals: dict[str, list[int]] = {}
    for client, number in rows:
        refusals.setdefault(client, []).append(number)
    return refusals


@contextmanager
def open_round_store(directory: Path, run: str) -> Iterator[RoundStore]:
    """Opens the rounds of a run, new ones if there are none, and keeps every other process out meanwhile.

    Raises:
        InputError: another process has them open, or they are another run's.
        OutputError: the directory cannot be written.
        StoreError: the database is damaged, or of a format that this version does not know.
    """
    with locked_run(directory), closing(_connect(directory)) as connection:
        epoch = _begin(connection, directory, run)
        store = RoundStore(directory, connection, epoch)
        _sweep(directory)
        store.keep_needed_blobs()
        yield store


def _sweep(directory: Path) -> None:
    """Removes what a crash left unfinished; the lock is held, so that nobody is at it now."""
    for path in (*directory.glob(".*.partial"), *(directory / QUARANTINE_DIRECTORY).glob(".*.partial")):
        path.unlink(missing_ok=True)


def _connect(directory: Path) -> sqlite3.Connection:
    path = directory / DATABASE_FILE
    try:
        path.touch(mode=0o600)
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        connection.execute("pragma foreign_keys = on")
        return connection
    except sqlite3.DatabaseError as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error


def _begin(connection: sqlite3.Connection, directory: Path, run: str) -> int:
    """Makes the tables where they are missing, and returns this process's epoch."""
    path = directory / DATABASE_FILE
    try:
        if (found := connection.execute("pragma integrity_check(1)").fetchone()) != ("ok",):
            raise StoreError(str(path), f"the database is damaged: {found[0]}")
        connection.execute("begin immediate")
        for statement in SCHEMA.split(";"):
            connection.execute(statement)
        check_checksums(connection, str(path))
        make_checksums(connection)
        keep_checksums(connection)
        row = connection.execute("select format, name, epoch from run").fetchone()
        if row is None:
            row = (FORMAT, run, 0)
            connection.execute("insert into run values (?, ?, ?)", row)
        if row[0] != FORMAT:
            raise StoreError(str(path), f"its format is {row[0]}, expected {FORMAT}")
        if row[1] != run:
            raise InputError(f"{path} belongs to run {row[1]}, expected {run}: make the run in another directory")
        connection.execute("update run set epoch = epoch + 1")
        connection.execute("commit")
    except sqlite3.OperationalError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error
    except sqlite3.DatabaseError as error:
        raise _damaged(path, error) from error
    return int(row[2]) + 1


def _damaged(path: Path, error: sqlite3.Error) -> StoreError:
    return StoreError(str(path), f"the database is damaged: {error}")
