import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fl_server.round_state import Assignment, Round
from fl_server.round_store import open_round_store
from fl_server.run_status import read_status
from scaleot_core.errors import StoreError
from tests.support.grids import set_stage

NOW = datetime(2027, 1, 1, tzinfo=UTC)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    set_stage(tmp_path, clients=1)
    asked = Assignment("clinic-0", 1, "a" * 64, NOW)
    with open_round_store(tmp_path, "run-1") as store:
        store.save(Round(1, "b" * 64, NOW, NOW + timedelta(hours=1), assignments=(asked,)), clients=("clinic-0",))
    return tmp_path


def write(run: Path, statement: str) -> None:
    """Writes as a stranger does, who keeps no checksums."""
    with closing(sqlite3.connect(run / "rounds.db")) as connection, connection:
        connection.execute(statement)


@pytest.mark.parametrize(
    ("statement", "place"),
    [
        ("update round set base_sha256 = replace(base_sha256, 'b', 'c')", "table round, row 1: its SHA-256"),
        ("update assignment set attempt = 2", "table assignment, row 1: its SHA-256"),
        ("insert into event (type, body) values ('x', '{}')", "table event, row 1: its SHA-256"),
        ("delete from assignment", "table assignment, row 1 is missing"),
    ],
)
def test_a_row_that_another_hand_has_changed_is_named(run: Path, statement: str, place: str) -> None:
    write(run, statement)
    with pytest.raises(StoreError, match=f"rounds.db: {place}"), open_round_store(run, "run-1"):
        pytest.fail("the block must not run")
    with pytest.raises(StoreError, match=f"rounds.db: {place}"):
        read_status(run)


def test_rows_may_be_written_again_and_removed(run: Path) -> None:
    with open_round_store(run, "run-1") as store:
        current = store.newest()
        assert current is not None
        for reason in ("once", "twice"):
            store.save(current.abort(reason), events=[("round.aborted", {})])
        for event in store.events():
            store.forget_event(event.number)
    with open_round_store(run, "run-1") as store:
        found = store.newest()
    assert found is not None and found.reason == "twice"


def test_a_database_of_a_version_without_checksums_gets_them(run: Path) -> None:
    write(run, "drop table checksum")
    with open_round_store(run, "run-1"):
        pass
    write(run, "update assignment set attempt = 2")
    with pytest.raises(StoreError, match="table assignment"), open_round_store(run, "run-1"):
        pytest.fail("the block must not run")
