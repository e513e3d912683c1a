"""Acceptance cases S23 and F09: a data owner's process dies at any moment, and the record is never below what left.

The process is real and is killed by SIGKILL. What it tells the outside world it writes to two files that no crash
touches: every noise as soon as it is drawn, and every release as it is sent.
"""

import hashlib
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest

from scaleot_core.errors import InputError
from scaleot_core.privacy.budget import Budget
from scaleot_core.privacy.ledger_file import create_ledger
from tests.support.ledgers import NOW, RUN, TERMS, Place, gaussian, gaussian_epsilon
from tests.support.outside import tell_outside, told
from tests.support.power_cut import PowerCut

FORK = multiprocessing.get_context("fork")
KILLS = 100


def place_in(parent: Path) -> Place:
    return Place(parent / "ledger", parent / "mirror")


def take_part(parent: Path, rounds: int) -> None:
    """Goes through the rounds as a client does, from the last one that the server has seen."""
    place = place_in(parent)
    (parent / "mirror").mkdir(exist_ok=True)
    if not place.directory.exists():
        create_ledger(place.directory, TERMS, budget_epsilon=1e9, now=NOW, mirror=place.mirror)
    sent = told(parent / "sent")
    with place.open() as ledger:
        for _, _, head in sent:
            ledger.check_not_rolled_back(head)
        for round_number in range(int(sent[-1][0]) if sent else 1, rounds + 1):
            release = ledger.released(RUN, round_number)
            if release is None:
                reservation = ledger.reserve(RUN, round_number, [gaussian()], "adapter update", now=NOW)
                release = os.urandom(16)
                tell_outside(parent / "drawn", round_number)
                ledger.commit(reservation, release, now=NOW)
            tell_outside(parent / "sent", round_number, release.hex(), ledger.head)


def check_the_record(parent: Path) -> None:
    """Checks the ledger, as it lies on the disk, against what the outside world was told."""
    drawn, sent, place = told(parent / "drawn"), told(parent / "sent"), place_in(parent)
    if not place.directory.exists():
        assert (drawn, sent) == ([], [])
        return
    chain = place.read()
    releases = {int(round_number): bytes.fromhex(release) for round_number, release, _ in sent}
    assert len({(round_number, release) for round_number, release, _ in sent}) == len(releases), "two noises"
    for round_number, release in releases.items():
        committed = chain.commit_of((RUN, round_number))
        assert committed is not None
        assert committed.release_sha256 == hashlib.sha256(release).hexdigest()
    assert {head for *_, head in sent} <= set(chain.hashes)
    charged = Counter(entry.round for entry in chain.entries if entry.type == "reserved")
    assert Counter(int(round_number) for (round_number,) in drawn) <= charged
    recorded = Budget(chain, gaussian_epsilon).spent
    assert recorded >= gaussian_epsilon([gaussian()] * len(drawn), TERMS.delta) >= 0
    assert recorded >= gaussian_epsilon([gaussian()] * len(releases), TERMS.delta)


def start(work: Callable[..., None], *arguments: Any) -> ForkProcess:
    process = FORK.Process(target=work, args=arguments, daemon=True)  # it ends with us, should a test be stopped
    process.start()
    return process


def test_s23_a_hundred_kills_around_releases_leave_no_release_uncharged_and_none_with_two_noises(
    tmp_path: Path,
) -> None:
    draw = random.Random(20261125)
    for _ in range(KILLS):
        wanted = len(told(tmp_path / "sent")) + draw.randint(0, 3)
        process = start(take_part, tmp_path, 10**6)
        while process.is_alive() and len(told(tmp_path / "sent")) < wanted:
            time.sleep(0.001)
        time.sleep(draw.uniform(0.0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        check_the_record(tmp_path)
    chain = place_in(tmp_path).read()
    reserved = sum(entry.type == "reserved" for entry in chain.entries)
    committed = sum(entry.type == "committed" for entry in chain.entries)
    assert committed >= KILLS / 4, "the process got on between the kills"
    assert reserved > committed, "some kills fell between a charge and its release"


def take_part_until(moment: int, loss: str, parent: Path, rounds: int) -> None:
    draw = random.Random(moment)
    choices = {"nothing": lambda: False, "everything": lambda: True, "something": lambda: draw.random() < 0.5}
    PowerCut(moment, choices[loss], draw).install()
    take_part(parent, rounds)


@pytest.mark.parametrize(
    ("loss", "rounds"),
    [
        ("everything", 1),
        pytest.param("everything", 3, marks=pytest.mark.slow),
        pytest.param("something", 3, marks=pytest.mark.slow),
        pytest.param("nothing", 3, marks=pytest.mark.slow),
    ],
)
def test_f09_a_power_cut_before_any_write_sync_or_rename_leaves_a_ledger_that_goes_on(
    tmp_path: Path, loss: str, rounds: int
) -> None:
    moment, exit_code = 0, -signal.SIGKILL
    while exit_code == -signal.SIGKILL:
        moment += 1
        parent = tmp_path / str(moment)
        parent.mkdir()
        process = start(take_part_until, moment, loss, parent, rounds)
        process.join()
        exit_code = process.exitcode or 0
        check_the_record(parent)
        take_part(parent, rounds)
        check_the_record(parent)
        assert {int(round_number) for round_number, *_ in told(parent / "sent")} == set(range(1, rounds + 1))
        assert list(parent.rglob("ledger/**/.*.partial")) == []
        assert len(list((parent / "ledger" / "releases").iterdir())) == rounds
    assert exit_code == 0
    assert moment > 10 + 20 * rounds, "that many calls change the disk"


def hold(place: Place, opened: Any) -> None:
    with place.open():
        opened.set()
        time.sleep(60)


def test_s23_two_processes_never_have_a_ledger_open_and_a_killed_one_frees_it(tmp_path: Path) -> None:
    take_part(tmp_path, 1)
    place, opened = place_in(tmp_path), FORK.Event()
    process = start(hold, place, opened)
    assert opened.wait(30)
    try:
        with pytest.raises(InputError, match=r"another process holds the lock .*ledger\.lock"), place.open():
            pytest.fail("the block must not run")
        assert len(place.read().entries) == 3, "reading needs no lock"
    finally:
        process.kill()
        process.join()
    with place.open() as ledger:
        assert ledger.released(RUN, 1) is not None


def test_s23_one_process_cannot_open_a_ledger_twice_either(tmp_path: Path) -> None:
    take_part(tmp_path, 1)
    place = place_in(tmp_path)
    with place.open(), pytest.raises(InputError, match="is open already"), place.open():
        pytest.fail("the block must not run")
    with place.open():
        pass
