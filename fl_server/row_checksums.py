"""A SHA-256 beside every row of ``rounds.db``: SQLite notices a page that makes no sense, and no digit that was turned.

The table ``checksum`` is kept by triggers that live in the writing connection alone, so that the file can be read
without the function they call. A database that has no such table is of an earlier version, and gets one.
"""

import hashlib
import sqlite3
from collections.abc import Iterator

from scaleot_core.errors import StoreError

TABLE = "checksum"
_SCHEMA = (
    f"create table if not exists {TABLE} (of_table text not null, id integer not null, sha256 text not null, "
    "primary key (of_table, id)) without rowid"
)


def keep_checksums(connection: sqlite3.Connection) -> None:
    """Has a connection keep the checksums of all that it writes from now on, in the same transaction."""
    connection.create_function("row_sha256", -1, _sha256, deterministic=True)
    connection.execute("pragma recursive_triggers = on")  # a row that is replaced is deleted first
    for table, columns in _tables(connection):
        values = ", ".join(f'new."{column}"' for column in columns)
        # Two statements: "or replace" of a trigger gives way to the conflict clause of the statement that fires it.
        put = (
            f"delete from {TABLE} where of_table = '{table}' and id = new.rowid; "  # noqa: S608 - names of our own
            f"insert into {TABLE} values ('{table}', new.rowid, row_sha256({values}));"
        )
        forget = f"delete from {TABLE} where of_table = '{table}' and id = old.rowid;"  # noqa: S608 - likewise
        for event, action in (("insert", put), ("update", put), ("delete", forget)):
            connection.execute(
                f"create temp trigger if not exists {table}_{event} after {event} on main.{table} begin {action} end"
            )


def make_checksums(connection: sqlite3.Connection) -> None:
    """Makes the table where it is missing, with a line for every row that is there; within a transaction."""
    if connection.execute("select 1 from sqlite_master where name = ?", (TABLE,)).fetchone():
        return
    connection.execute(_SCHEMA)
    for table, row_id, digest in _digests(connection):
        connection.execute(f"insert into {TABLE} values (?, ?, ?)", (table, row_id, digest))  # noqa: S608 - our name


def check_checksums(connection: sqlite3.Connection, source: str) -> None:
    """Checks that every row is what was written; within a transaction, so that no writer comes between.

    A database of an earlier version, without checksums, passes.

    Raises:
        StoreError: a row was changed, lost or added by another than this program; the message names it.
    """
    if not connection.execute("select 1 from sqlite_master where name = ?", (TABLE,)).fetchone():
        return
    kept = {(table, row_id): digest for table, row_id, digest in connection.execute(f"select * from {TABLE}")}  # noqa: S608
    for table, row_id, digest in _digests(connection):
        if kept.pop((table, row_id), None) != digest:
            raise StoreError(source, f"table {table}, row {row_id}: its SHA-256 is another: the disk has damaged it")
    for table, row_id in kept:
        raise StoreError(source, f"table {table}, row {row_id} is missing: the disk has damaged it")


def _digests(connection: sqlite3.Connection) -> Iterator[tuple[str, int, str]]:
    for table, columns in _tables(connection):
        named = ", ".join(f'"{column}"' for column in columns)
        for row_id, *values in connection.execute(f"select rowid, {named} from main.{table}"):  # noqa: S608 - our names
            yield table, row_id, _sha256(*values)


def _tables(connection: sqlite3.Connection) -> list[tuple[str, list[str]]]:
    query = "select name from sqlite_master where type = 'table' and name <> ? and name not like 'sqlite_%'"
    names = [row[0] for row in connection.execute(query, (TABLE,))]
    return [(name, [row[1] for row in connection.execute(f"pragma table_info({name})")]) for name in names]


def _sha256(*values: object) -> str:
    """Returns the digest of a row: numbers, texts, bytes and NULLs, none of which reads as another."""
    return hashlib.sha256(repr(values).encode()).hexdigest()
