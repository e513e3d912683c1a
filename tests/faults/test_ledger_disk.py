"""Acceptance case F06: a disk that is full or may not be written. What was not written was not acknowledged."""

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from scaleot_core.errors import LedgerError, OutputError
from tests.support.kills import no_file_larger_than
from tests.support.ledgers import NOW, RUN, Place, gaussian, new_ledger, release

NOBODY = 65534


@pytest.mark.parametrize("fitting_bytes", [0, 1, 200])
def test_a_charge_that_the_disk_cannot_take_is_not_acknowledged(tmp_path: Path, fitting_bytes: int) -> None:
    place = new_ledger(tmp_path)
    with place.open() as ledger:
        release(ledger, 1, b"noised")
        before, spent = place.lines.read_bytes(), ledger.budget.spent
        with no_file_larger_than(len(before) + fitting_bytes), pytest.raises(OutputError, match="cannot be written"):
            ledger.reserve(RUN, 2, [gaussian()], "adapter update", now=NOW)
        assert len(place.lines.read_bytes()) == len(before) + fitting_bytes
        with pytest.raises(LedgerError, match="open the ledger again"):
            ledger.reserve(RUN, 2, [gaussian()], "adapter update", now=NOW)
        assert ledger.released(RUN, 1) == b"noised"
    with place.open() as ledger:
        assert ledger.budget.spent == spent
        assert place.lines.read_bytes().startswith(before)
        release(ledger, 2, b"noised")


def test_a_release_that_the_disk_cannot_take_is_not_committed_and_may_be_tried_again(tmp_path: Path) -> None:
    place = new_ledger(tmp_path)
    with place.open() as ledger:
        reservation = ledger.reserve(RUN, 1, [gaussian()], "adapter update", now=NOW)
        with no_file_larger_than(4096), pytest.raises(OutputError, match="nothing was released"):
            ledger.commit(reservation, b"x" * 5000, now=NOW)
        assert ledger.released(RUN, 1) is None
        assert list((place.directory / "releases").iterdir()) == []
        ledger.commit(reservation, b"x" * 5000, now=NOW)
        assert ledger.released(RUN, 1) == b"x" * 5000


def test_a_commit_whose_line_the_disk_cannot_take_is_not_acknowledged_and_its_bytes_go(tmp_path: Path) -> None:
    place = new_ledger(tmp_path)
    with place.open() as ledger:
        reservation = ledger.reserve(RUN, 1, [gaussian()], "adapter update", now=NOW)
        with (
            no_file_larger_than(place.lines.stat().st_size + 9),
            pytest.raises(OutputError, match="nothing was released"),
        ):
            ledger.commit(reservation, b"noised", now=NOW)
        assert ledger.released(RUN, 1) is None
    with place.open() as ledger:
        assert ledger.released(RUN, 1) is None
        assert list((place.directory / "releases").iterdir()) == []
        release(ledger, 1, b"another noise; the first never left")


def test_a_ledger_that_cannot_be_recovered_for_want_of_room_stays_as_it_is(tmp_path: Path) -> None:
    place = new_ledger(tmp_path)
    with place.lines.open("ab") as file:
        file.write(b'{"entry":')
    torn = place.lines.read_bytes()
    with no_file_larger_than(100), pytest.raises(OutputError, match="Make room"), place.open():
        pytest.fail("the block must not run")
    assert place.lines.read_bytes() == torn
    with place.open():
        pass
    assert [entry.type for entry in place.read().entries] == ["opened", "recovered"]


def test_a_new_ledger_that_the_disk_cannot_take_does_not_exist(tmp_path: Path) -> None:
    with no_file_larger_than(100), pytest.raises(OutputError, match="cannot be written"):
        new_ledger(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_mirror_that_cannot_be_written_stops_before_anything_is_acknowledged(tmp_path: Path) -> None:
    place = new_ledger(tmp_path, is_mirrored=True)
    assert place.mirror is not None
    with place.open() as ledger:
        for path in place.mirror.iterdir():
            path.unlink()
        place.mirror.rmdir()
        with pytest.raises(OutputError, match=r"mirror.* cannot be written"):
            ledger.reserve(RUN, 1, [gaussian()], "adapter update", now=NOW)
    with pytest.raises(OutputError, match=r"mirror.* cannot be written"), place.open():
        pytest.fail("the block must not run")
    with replace(place, mirror=None).open() as ledger:
        assert ledger.budget.spent > 0, "the charge was on the disk: it counts, though nobody was told"


def without_rights(directory: Path, work: Callable[[], None]) -> None:
    """Runs ``work`` in ``directory`` as a user with no right to write there; root has every right, so not as root."""

    def as_nobody() -> None:
        os.chdir(directory)  # as root: the way there may be closed to others
        if os.geteuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        work()

    process = multiprocessing.get_context("fork").Process(target=as_nobody)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_a_directory_that_may_only_be_read_can_be_read_and_not_opened(tmp_path: Path) -> None:
    place = new_ledger(tmp_path)
    with place.open() as ledger:
        release(ledger, 1, b"noised")
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    here = Place(Path("ledger"), mirror=None)

    def read_and_open() -> None:
        assert len(here.read().entries) == 3
        with pytest.raises(OutputError, match="Permission denied"), here.open():
            pytest.fail("the block must not run")

    try:
        without_rights(tmp_path, read_and_open)
    finally:
        for path in (tmp_path, *tmp_path.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
