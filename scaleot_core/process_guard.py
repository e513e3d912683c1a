"""Stops every process of a federation's side when the one that started it is done, or is killed.

Usage: python -m scaleot_core.process_guard FOLDER [--remove]

Standard input is the leash: its end is the end of whoever holds the other one, however it came. A process belongs to
FOLDER if ``FLWR_HOME`` is FOLDER or lies in it, in its environment, or if it descends from such a one: Flower and Ray
start theirs in sessions of their own and leave orphans, and some overwrite their environment with a title. Others hide
their environment, so whoever starts them names their sessions on the leash: ``+ID`` for a new one, ``-ID`` for one that
is over. In the end FOLDER is removed if that was asked for.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

STOP_SECONDS = 15.0
REMOVE_OPTION = "--remove"


@contextmanager
def guarded(folder: Path, *options: str) -> Iterator[Callable[[str], None]]:
    """Has every process of the folder stopped when the block ends, even if this process is killed meanwhile.

    The block gets a function that writes a line on the leash.
    """
    command = [sys.executable, "-m", "scaleot_core.process_guard", str(folder), *options]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)  # noqa: S603 - our own
    leash = guard.stdin
    if leash is None:
        raise AssertionError  # a pipe was asked for; this says so to the type checker

    def tell(line: str) -> None:
        leash.write(f"{line}\n")
        leash.flush()

    try:
        yield tell
    finally:
        guard.communicate()  # closes its standard input and waits


def main() -> None:
    """Waits for the end of standard input, then stops and removes."""
    folder, sessions = Path(sys.argv[1]), set[int]()
    for line in sys.stdin:
        (sessions.add if line.startswith("+") else sessions.discard)(int(line[1:]))
    stop_processes(folder, sessions)
    if REMOVE_OPTION in sys.argv[2:]:
        shutil.rmtree(folder, ignore_errors=True)


def stop_processes(folder: Path, sessions: Collection[int] = ()) -> None:
    """Asks the folder's processes, and those of the sessions, to end, and ends those that do not."""
    processes: set[psutil.Process] = set()
    for number, end in ((signal.SIGTERM, psutil.Process.terminate), (signal.SIGKILL, psutil.Process.kill)):
        for session in sessions:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(session, number)
        processes |= processes_of(folder) | _leaders(sessions)
        for process in processes:
            with suppress(psutil.Error):
                end(process)
        psutil.wait_procs(processes, timeout=STOP_SECONDS)


def _leaders(sessions: Collection[int]) -> set[psutil.Process]:
    found: set[psutil.Process] = set()
    for session in sessions:
        with suppress(psutil.Error):
            found.add(psutil.Process(session))
    return found


def processes_of(folder: Path) -> set[psutil.Process]:
    """Returns the live processes of this user that belong to the folder."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it ended meanwhile, or is another user's
            home = process.environ().get("FLWR_HOME")
            if home and Path(home).is_relative_to(folder):
                found |= {process, *process.children(recursive=True)}
    return found


if __name__ == "__main__":
    main()
