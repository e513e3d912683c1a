"""A ledger that was put back from a copy, or begun anew, is noticed: by its head, and by its mirror."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from scaleot_core.errors import LedgerError, OutputError
from scaleot_core.privacy.ledger_file import create_ledger
from tests.support.ledgers import NOW, TERMS, new_ledger, release


def test_a_head_that_the_ledger_once_had_is_in_it_and_any_other_is_not(tmp_path: Path) -> None:
    place = new_ledger(tmp_path)
    heads = []
    with place.open() as ledger:
        for round_number in range(1, 4):
            release(ledger, round_number, b"noised")
            heads.append(ledger.head)
        for head in heads:
            ledger.check_not_rolled_back(head)
        with pytest.raises(LedgerError, match="older copy") as refused:
            ledger.check_not_rolled_back("ab" * 32)
    assert refused.value.line == 8, "seven lines are here"


def test_s23_a_restored_backup_is_noticed_by_whoever_saw_a_newer_head(tmp_path: Path) -> None:
    place = new_ledger(tmp_path)
    with place.open() as ledger:
        release(ledger, 1, b"noised")
    shutil.copytree(place.directory, tmp_path / "backup")
    with place.open() as ledger:
        release(ledger, 2, b"noised")
        seen_by_the_server = ledger.head
    shutil.rmtree(place.directory)
    (tmp_path / "backup").rename(place.directory)
    with place.open() as ledger:
        with pytest.raises(LedgerError, match="line 4: at this line, or at an earlier one, it parted") as refused:
            ledger.check_not_rolled_back(seen_by_the_server)
        assert refused.value.line == 4, "the first that is missing"
        release(ledger, 2, b"a second noise, were it sent")
        with pytest.raises(LedgerError, match="line 6: at this line, or at an earlier one, it parted") as refused:
            ledger.check_not_rolled_back(seen_by_the_server)
        assert refused.value.line == 6, "it went on: the two parted at line 5, which the head alone does not say"


def test_s23_a_restored_backup_is_noticed_by_the_mirror(tmp_path: Path) -> None:
    place = new_ledger(tmp_path, is_mirrored=True)
    with place.open() as ledger:
        release(ledger, 1, b"noised")
    shutil.copytree(place.directory, tmp_path / "backup")
    with place.open() as ledger:
        release(ledger, 2, b"noised")
    shutil.rmtree(place.directory)
    (tmp_path / "backup").rename(place.directory)
    with pytest.raises(LedgerError, match=r"line 4: it is missing: .*mirror.* names line 5") as refused, place.open():
        pytest.fail("the block must not run")
    assert refused.value.line == 4


def test_s23_a_backup_that_went_on_by_itself_is_noticed_by_the_mirror(tmp_path: Path) -> None:
    place = new_ledger(tmp_path, is_mirrored=True)
    shutil.copytree(place.directory, tmp_path / "copy")
    with place.open() as ledger:
        release(ledger, 1, b"noised")
        release(ledger, 2, b"noised")
    copy = replace(place, directory=tmp_path / "copy", mirror=None)
    with copy.open() as ledger:
        release(ledger, 1, b"another noise")
        release(ledger, 2, b"another noise")
    with (
        pytest.raises(LedgerError, match="not the same ledger, from this line or an earlier one on") as refused,
        replace(copy, mirror=place.mirror).open(),
    ):
        pytest.fail("the block must not run")
    assert refused.value.line == 5, "the one that the mirror knows; the two parted at line 3"


def test_a_damaged_mirror_stops_at_the_last_line_which_it_should_name(tmp_path: Path) -> None:
    place = new_ledger(tmp_path, is_mirrored=True)
    with place.open() as ledger:
        release(ledger, 1, b"noised")
    assert place.mirror is not None
    (mirrored,) = place.mirror.iterdir()
    mirrored.write_bytes(b"{}")
    with pytest.raises(LedgerError, match=f"line 3: {mirrored} is damaged") as refused, place.open():
        pytest.fail("the block must not run")
    assert refused.value.line == 3


def test_a_second_ledger_of_a_data_set_is_refused_where_the_mirror_knows_the_first(tmp_path: Path) -> None:
    place = new_ledger(tmp_path, is_mirrored=True)
    other = TERMS.model_copy(update={"delta": 1e-6})
    with pytest.raises(LedgerError, match="exists already"):
        create_ledger(tmp_path / "new", other, budget_epsilon=8.0, now=NOW, mirror=place.mirror)
    assert not (tmp_path / "new").exists()


def test_a_mirror_that_is_not_there_is_named_before_a_ledger_is_made(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"mirror .*nowhere is no directory"):
        create_ledger(tmp_path / "new", TERMS, budget_epsilon=8.0, now=NOW, mirror=tmp_path / "nowhere")
    assert not (tmp_path / "new").exists()


def test_a_mirror_may_be_given_later(tmp_path: Path) -> None:
    place = new_ledger(tmp_path)
    with place.open() as ledger:
        release(ledger, 1, b"noised")
    (tmp_path / "mirror").mkdir()
    with replace(place, mirror=tmp_path / "mirror").open() as ledger:
        release(ledger, 2, b"noised")
    (mirrored,) = (tmp_path / "mirror").iterdir()
    assert mirrored.read_bytes() == place.head.read_bytes()
