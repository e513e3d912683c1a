"""F05: whatever process of a running federation is killed, its rounds complete, to the same adapter."""

import shutil
from pathlib import Path

import pytest

from fl_server.in_process import run_in_process
from fl_server.new_run import begin_run
from fl_server.run_status import read_status
from scaleot_core.progress import SilentReporter
from tests.support.deployments import Deployed, build_deployment
from tests.support.running import is_in_round, kill, run_status, running, wait_for

ROUNDS = 4
ROUND_SECONDS = 600.0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_f05_killed_superlink_supernode_and_serverapp_lose_nothing(tmp_path: Path) -> None:
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
    status = run_status(deployed)
    assert status is not None
    assert status.is_finished
    assert [one.state for one in status.history] == ["COMMITTED"] * ROUNDS
    assert before <= acknowledged(deployed)
    assert adapter(deployed.owner_home) == adapter(undisturbed(deployed, tmp_path / "undisturbed"))


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
