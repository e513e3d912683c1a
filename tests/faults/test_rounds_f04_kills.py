"""Acceptance case F04: the server of the rounds is killed anywhere, often, and takes back nothing it said."""

import random
import shutil
import signal
from functools import cache
from pathlib import Path

import pytest

from tests.support.grids import set_stage
from tests.support.round_lives import check_the_end, check_what_was_said, live, live_until, run


@cache
def undisturbed(root: Path, rounds: int) -> bytes:
    """The adapter of the same run when nothing happens to it."""
    directory = root / f"undisturbed-{rounds}"
    directory.mkdir()
    set_stage(directory, clients=3, rounds=rounds)
    assert run(live, directory, directory / "said") == 0
    return (directory / "adapter.safetensors").read_bytes()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kills")


def kill_at_random(directory: Path, *, rounds: int, kills: int, seed: int) -> int:
    """Kills a run so often, and returns how often it was killed before it came to its end."""
    set_stage(directory, clients=3, rounds=rounds)
    draw, said, killed = random.Random(seed), directory / "said", 0
    while killed < kills:
        exit_code = run(live_until, directory, said, draw.randint(1, 120), "nothing")
        if exit_code == 0:
            break
        assert exit_code == -signal.SIGKILL
        killed += 1
        check_what_was_said(directory, said)
    assert run(live, directory, said) == 0
    return killed


def test_f04_twenty_five_kills_at_random_change_nothing(tmp_path: Path, root: Path) -> None:
    killed = kill_at_random(tmp_path, rounds=12, kills=25, seed=1)
    assert killed > 15
    check_the_end(tmp_path, tmp_path / "said", undisturbed(root, 12))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_f04_two_hundred_and_fifty_kills_in_four_hundred_rounds_change_nothing(tmp_path: Path, root: Path) -> None:
    killed = kill_at_random(tmp_path, rounds=400, kills=250, seed=2)
    assert killed == 250
    check_the_end(tmp_path, tmp_path / "said", undisturbed(root, 400))


def _every_moment(tmp_path: Path, root: Path, *, rounds: int, step: int, loss: str) -> int:
    """Cuts a fresh run at each of its writes in turn, and returns how many there are."""
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    set_stage(fresh, clients=3, rounds=rounds)
    moment, exit_code = 1 - step, -signal.SIGKILL
    while exit_code == -signal.SIGKILL:
        moment += step
        directory = tmp_path / str(moment)
        shutil.copytree(fresh, directory)
        exit_code = run(live_until, directory, directory / "said", moment, loss)
        assert run(live, directory, directory / "said") == 0
        check_the_end(directory, directory / "said", undisturbed(root, rounds))
        shutil.rmtree(directory)
    assert exit_code == 0
    return moment


def test_f04_a_kill_before_and_after_writes_of_a_round_leaves_one_that_goes_on(tmp_path: Path, root: Path) -> None:
    assert _every_moment(tmp_path, root, rounds=1, step=7, loss="nothing") > 50


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_f04_a_kill_before_and_after_every_write_leaves_a_run_that_goes_on(tmp_path: Path, root: Path) -> None:
    assert _every_moment(tmp_path, root, rounds=2, step=1, loss="nothing") > 100


def test_f09_a_power_cut_at_writes_of_a_round_leaves_one_that_goes_on(tmp_path: Path, root: Path) -> None:
    assert _every_moment(tmp_path, root, rounds=1, step=7, loss="everything") > 50


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("loss", ["everything", "something"])
def test_f09_a_power_cut_at_every_write_leaves_a_run_that_goes_on(tmp_path: Path, root: Path, loss: str) -> None:
    assert _every_moment(tmp_path, root, rounds=2, step=1, loss=loss) > 100
