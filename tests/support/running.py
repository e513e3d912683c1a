"""A deployed federation that runs: ``scaleot serve`` and ``scaleot join`` as processes of their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from fl_server.run_status import RunStatus, read_status
from scaleot_core.process_guard import processes_of
from tests.support.deployments import Deployed

STOP_SECONDS = 60.0


@contextmanager
def scaleot(*arguments: str | Path) -> "Iterator[subprocess.Popen[bytes]]":
    """Runs a verb in a session of its own, and asks it to end when the block does."""
    command = [str(Path(sys.executable).parent / "scaleot"), *map(str, arguments)]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def running(deployed: Deployed) -> "Iterator[subprocess.Popen[bytes]]":
    """Runs every party and yields the server's process."""
    with ExitStack() as stack:
        server = stack.enter_context(scaleot("serve", deployed.owner_home))
        for home in deployed.data_owner_homes:
            stack.enter_context(scaleot("join", home))
        yield server


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.2)


def run_status(deployed: Deployed) -> RunStatus | None:
    run = deployed.owner_home / "run"
    return read_status(run) if (run / "federation.json").exists() else None


def check_is_committed(deployed: Deployed, rounds: int) -> None:
    """Checks that a run is over, and that every one of its rounds counts."""
    status = run_status(deployed)
    assert status is not None
    assert status.is_finished
    assert [one.state for one in status.history] == ["COMMITTED"] * rounds


def is_in_round(deployed: Deployed, number: int) -> bool:
    """Whether a round has begun and somebody is asked in it."""
    status = run_status(deployed)
    return status is not None and (
        status.round_number > number or (status.round_number == number and bool(status.asked))
    )


def kill(folder: Path, program: str) -> int:
    """Kills the one process of a folder whose command line names a program, and returns its id."""
    found = [process for process in processes_of(folder) if _runs(process, program)]
    assert len(found) == 1, f"{len(found)} processes of {program} in {folder}"
    found[0].kill()
    return found[0].pid


def _runs(process: psutil.Process, program: str) -> bool:
    try:
        return any(Path(argument).name == program for argument in process.cmdline())
    except psutil.Error:
        return False
