"""F05: whatever process of a running federation is killed, its rounds complete, to the same adapter.

::

    pytest -m slow tests/faults/test_processes_f05.py -k once            # one death of each process
    pytest -m slow tests/faults/test_processes_f05.py -k ten_times       # an hour or so
    pytest -m slow tests/faults/test_processes_f05.py -k kill_9 -s       # prints the seconds until a round goes on
"""

import shutil
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from fl_server.in_process import run_in_process
from fl_server.new_run import begin_run
from fl_server.run_status import read_status
from scaleot_core.progress import SilentReporter
from tests.support.deployments import Deployed, build_deployment
from tests.support.running import check_is_committed, is_in_round, kill, run_status, running, wait_for

ROUNDS = 4
ROUND_SECONDS = 600.0
KILLS = 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_f05_superlink_supernode_and_serverapp_killed_once_lose_nothing(tmp_path: Path) -> None:
    deployed = build_deployment(tmp_path, f"federation.rounds={ROUNDS}")
    superlink, node = deployed.owner_home / "superlink", deployed.data_owner_homes[1] / "flower"
    with running(deployed) as server:
        wait_for(lambda: is_in_round(deployed, 1), ROUND_SECONDS, "round 1")
        kill(superlink / "superlink", "flower-superlink")
        wait_for(lambda: is_in_round(deployed, 2), ROUND_SECONDS, "round 2 after the SuperLink's death")
        kill(node / "node", "flower-supernode")
        wait_for(lambda: is_in_round(deployed, 3), ROUND_SECONDS, "round 3 after a SuperNode's death")
        before = acknowledged(deployed)
        kill(superlink / "server-app", "flwr-serverapp")
        assert server.wait(2 * ROUND_SECONDS) == 0
    check_the_end(deployed, before, tmp_path / "undisturbed", rounds=ROUNDS)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_f05_superlink_and_supernodes_killed_ten_times_each_complete_every_round(tmp_path: Path) -> None:
    rounds = 2 * KILLS + 1
    deployed = build_deployment(tmp_path, f"federation.rounds={rounds}")
    with running(deployed) as server:
        for number in range(KILLS):
            reach_round(deployed, 2 * number + 1)
            kill(deployed.owner_home / "superlink/superlink", "flower-superlink")
            reach_round(deployed, 2 * number + 2)
            own = deployed.data_owner_homes[number % len(deployed.data_owner_homes)]
            kill(own / "flower/node", "flower-supernode")
        before = acknowledged(deployed)
        assert server.wait(2 * ROUND_SECONDS) == 0
    check_the_end(deployed, before, tmp_path / "undisturbed", rounds=rounds)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_f05_kill_9_of_the_server_in_the_middle_of_a_round_keeps_what_it_has_acknowledged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed = build_deployment(tmp_path, f"federation.rounds={ROUNDS}")
    with running(deployed) as server:
        wait_for(lambda: is_in_the_middle(deployed), ROUND_SECONDS, "the middle of a round")
        before, lives = acknowledged(deployed), lives_of(deployed)
        kill(deployed.owner_home / "superlink/server-app", "flwr-serverapp")
        killed = time.monotonic()
        wait_for(lambda: lives_of(deployed) > lives, ROUND_SECONDS, "the next life of the server")
        opened_seconds = time.monotonic() - killed
        assert before <= acknowledged(deployed)
        wait_for(lambda: before < acknowledged(deployed), ROUND_SECONDS, "the next update")
        with capsys.disabled():
            heard_seconds = time.monotonic() - killed
            sys.stdout.write(f"\nthe round is open again after {opened_seconds:.1f} s, ")
            sys.stdout.write(f"its next update is acknowledged after {heard_seconds:.1f} s\n")
        assert server.wait(ROUNDS * ROUND_SECONDS) == 0
    check_the_end(deployed, before, tmp_path / "undisturbed", rounds=ROUNDS)


def check_the_end(deployed: Deployed, before: set[str], root: Path, *, rounds: int) -> None:
    """Checks that a run has lost no update that it had acknowledged, and ended as one that nothing disturbed."""
    check_is_committed(deployed, rounds)
    assert before <= acknowledged(deployed)
    assert adapter(deployed.owner_home) == adapter(undisturbed(deployed, root))


def reach_round(deployed: Deployed, number: int) -> None:
    wait_for(lambda: is_in_round(deployed, number), ROUND_SECONDS, f"round {number}")


def is_in_the_middle(deployed: Deployed) -> bool:
    """Whether a round has an update and waits for another."""
    status = run_status(deployed)
    states = {asked.status for asked in status.asked} if status is not None else set()
    return {"accepted", "waiting"} <= states


def lives_of(deployed: Deployed) -> int:
    """How often a server has opened the rounds."""
    path = deployed.owner_home / "run/rounds.db"
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=10.0)) as reading:
        return int(reading.execute("select epoch from run").fetchone()[0])


def acknowledged(deployed: Deployed) -> set[str]:
    """The updates that the newest round has, and those of the rounds before."""
    status = run_status(deployed)
    assert status is not None
    done = {f"{one.round_number}: {client}" for one in status.history for client in one.clients}
    return done | {f"{status.round_number}: {asked.client}" for asked in status.asked if asked.status == "accepted"}


def adapter(home: Path) -> bytes:
    return (home / "run/adapter.safetensors").read_bytes()


def undisturbed(deployed: Deployed, root: Path) -> Path:
    """Runs the same rounds in one process, with copies of the same homes, and returns the model owner's."""
    home = root / "owner"
    shutil.copytree(deployed.owner_home, home, ignore=shutil.ignore_patterns("superlink", "run"))
    begin_run(home, SilentReporter())
    homes = []
    for own in deployed.data_owner_homes:
        ignored = shutil.ignore_patterns("flower", "releases")
        homes.append(shutil.copytree(own, root / own.name, symlinks=True, ignore=ignored))
    run_in_process(home / "run", homes, SilentReporter())
    assert read_status(home / "run").is_finished
    return home
