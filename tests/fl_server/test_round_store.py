import multiprocessing
import os
import sqlite3
import stat
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fl_server.blob_store import BlobStore, Quarantine, Refused
from fl_server.round_state import Round, RoundState
from fl_server.round_store import DATABASE_FILE, open_round_store
from scaleot_core.errors import InputError, OutputError, StoreError
from tests.support.kills import no_file_larger_than

NOW = datetime(2027, 1, 1, tzinfo=UTC)
ROUND = Round(1, "0" * 64, opened_at=NOW, deadline=NOW)


def test_every_commit_waits_for_the_disk_and_the_files_are_the_owners_alone(tmp_path: Path) -> None:
    with open_round_store(tmp_path, "run-1") as store:
        store.save(ROUND)
        assert store._connection.execute("pragma synchronous").fetchone() == (2,)
        assert store._connection.execute("pragma journal_mode").fetchone() == ("wal",)
    assert stat.S_IMODE((tmp_path / DATABASE_FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "blobs").stat().st_mode) == 0o700


def test_a_second_server_on_one_state_is_told_so_at_once(tmp_path: Path) -> None:
    with open_round_store(tmp_path, "run-1"):
        process = multiprocessing.get_context("fork").Process(target=_second, args=(tmp_path,))
        process.start()
        process.join()
        assert process.exitcode == 3
    with open_round_store(tmp_path, "run-1"):
        pass


def _second(directory: Path) -> None:
    try:
        with open_round_store(directory, "run-1"):
            os._exit(0)
    except InputError as error:
        os._exit(3 if "rounds.lock" in str(error) else 4)


def test_a_server_that_lost_its_lock_writes_no_more(tmp_path: Path) -> None:
    with open_round_store(tmp_path, "run-1") as old:
        old.save(ROUND)
        (tmp_path / "rounds.lock").unlink()
        with open_round_store(tmp_path, "run-1") as new:
            new.save(ROUND.close())
            with pytest.raises(StoreError, match="another process has opened it since"):
                old.save(ROUND.abort("of the old one"))
            current = new.newest()
            assert current is not None and current.state is RoundState.CLOSED


def test_another_runs_rounds_are_left_alone(tmp_path: Path) -> None:
    with open_round_store(tmp_path, "run-1"):
        pass
    with pytest.raises(InputError, match="belongs to run run-1"), open_round_store(tmp_path, "run-2"):
        pass


def test_f07_a_damaged_database_is_refused(tmp_path: Path) -> None:
    with open_round_store(tmp_path, "run-1") as store:
        store.save(ROUND)
    path = tmp_path / DATABASE_FILE
    content = bytearray(path.read_bytes())
    for place in range(4096, len(content), 64):
        content[place] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(StoreError, match="damaged"), open_round_store(tmp_path, "run-1"):
        pass


def test_f07_a_damaged_blob_is_named_and_nothing_is_made_of_it(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    digest = blobs.put(b"adapter")
    (tmp_path / "blobs" / digest).write_bytes(b"adaptor")
    with pytest.raises(StoreError, match=digest):
        blobs.get(digest)


def test_f06_a_row_that_the_disk_cannot_take_is_not_written_and_may_be_tried_again(tmp_path: Path) -> None:
    with open_round_store(tmp_path, "run-1") as store:
        store.save(ROUND)
        size = (tmp_path / f"{DATABASE_FILE}-wal").stat().st_size
        with no_file_larger_than(size + 1000), pytest.raises(OutputError, match="make room"):
            store.save(ROUND.close(), events=[("round.closed", {"text": "x" * 5000})])
        current = store.newest()
        assert current is not None and current.state is RoundState.OPEN
        store.save(ROUND.close())
    with open_round_store(tmp_path, "run-1") as store:
        current = store.newest()
        assert current is not None and current.state is RoundState.CLOSED
        assert sqlite3.connect(tmp_path / DATABASE_FILE).execute("pragma integrity_check").fetchone() == ("ok",)


def test_f06_a_blob_that_the_disk_cannot_take_is_not_there(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    with no_file_larger_than(1000), pytest.raises(OutputError, match="make room"):
        blobs.put(b"x" * 5000)
    assert list((tmp_path / "blobs").iterdir()) == []
    assert blobs.get(blobs.put(b"x" * 5000)) == b"x" * 5000


def test_what_nothing_names_is_swept_when_the_store_is_opened(tmp_path: Path) -> None:
    with open_round_store(tmp_path, "run-1") as store:
        base = store.blobs.put(b"base")
        store.save(Round(1, base, opened_at=NOW, deadline=NOW))
        store.blobs.put(b"an update that no row names")
        (tmp_path / "blobs" / ".x.partial").write_bytes(b"")
    with open_round_store(tmp_path, "run-1"):
        assert [path.name for path in (tmp_path / "blobs").iterdir()] == [base]


def refused(text: bytes) -> Refused:
    return Refused("clinic-a", 3, "E_NORM", "expected norm <= 1, got 2", text)


def test_a_refused_update_lies_in_quarantine_with_its_reason_and_envelope(tmp_path: Path) -> None:
    Quarantine(tmp_path).put(b"blob", refused(b"signed"))
    blob, note = sorted((tmp_path / "quarantine").iterdir())
    assert blob.read_bytes() == b"blob" and '"E_NORM"' in note.read_text()
    assert {stat.S_IMODE(path.stat().st_mode) for path in (blob, note)} == {0o600}


def test_the_quarantine_lets_the_oldest_go(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, max_bytes=10, max_age_seconds=1000)
    for number, letter in enumerate((b"a", b"b", b"c")):
        quarantine.put(letter * 4, refused(b""))
        for path in (tmp_path / "quarantine").glob("*.blob"):
            if path.read_bytes() == letter * 4:
                os.utime(path, (time.time() - 100 + number,) * 2)
    quarantine.put(b"x" * 11, refused(b""))
    kept = {path.read_bytes() for path in (tmp_path / "quarantine").glob("*.blob")}
    assert kept == {b"bbbb", b"cccc"}
    assert len(list((tmp_path / "quarantine").glob("*.json"))) == 2
    Quarantine(tmp_path, max_age_seconds=10).put(b"new", refused(b""))
    assert [path.read_bytes() for path in (tmp_path / "quarantine").glob("*.blob")] == [b"new"]
