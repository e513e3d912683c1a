import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from scaleot_core import process_guard
from scaleot_core.process_guard import processes_of, stop_processes

SLEEPS = "import time; print('up', flush=True); time.sleep(120)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPS


class Household:
    """Processes that are started here and ended here."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []
        self.first_lines: list[str] = []

    def start(self, folder: Path, code: str = SLEEPS) -> "subprocess.Popen[str]":
        environment = {**os.environ, "FLWR_HOME": str(folder)}
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.processes.append(process)
        assert process.stdout is not None
        self.first_lines.append(process.stdout.readline())
        return process


@pytest.fixture
def household() -> Iterator[Household]:
    household = Household()
    yield household
    for process in household.processes:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_only_the_folders_processes_are_stopped_wherever_they_run(tmp_path: Path, household: Household) -> None:
    ours, bystander = household.start(tmp_path / "a"), household.start(tmp_path / "b")
    assert {process.pid for process in processes_of(tmp_path / "a")} == {ours.pid}
    stop_processes(tmp_path / "a")
    assert not psutil.pid_exists(ours.pid)
    assert bystander.poll() is None


def test_a_descendant_that_hides_its_environment_is_stopped_too(tmp_path: Path, household: Household) -> None:
    code = (
        "import subprocess, sys, time\n"
        "command = [sys.executable, '-c', 'import time; time.sleep(120)']\n"
        "child = subprocess.Popen(command, env={}, start_new_session=True)\n"
        "print(child.pid, flush=True); time.sleep(120)"
    )
    household.start(tmp_path, code)
    child = int(household.first_lines[-1])
    assert psutil.pid_exists(child)
    stop_processes(tmp_path)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_process_that_does_not_listen_is_ended(
    tmp_path: Path, household: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_guard, "STOP_SECONDS", 0.3)
    stubborn = household.start(tmp_path, STUBBORN)
    stop_processes(tmp_path)
    assert not psutil.pid_exists(stubborn.pid)


def test_the_guard_cleans_up_when_its_holder_is_killed(tmp_path: Path, household: Household) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    ours = household.start(folder)
    holder_code = (
        "import subprocess, sys, time\n"
        f"command = [sys.executable, '-m', 'scaleot_core.process_guard', {str(folder)!r}, '--remove']\n"
        "guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)\n"
        "print('up', flush=True); time.sleep(120)"
    )
    holder = household.start(tmp_path / "elsewhere", holder_code)
    assert ours.poll() is None
    holder.kill()
    assert ours.wait(30) != 0
    deadline = time.monotonic() + 10
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not folder.exists()
