"""Stops every process of a simulation when the one that started it is done, or is killed.

Usage: python -m fl_server.process_guard FOLDER

Standard input is the leash: its end is the end of whoever holds the other one, however it came. A process belongs to
the simulation if ``FLWR_HOME`` is FOLDER in its environment, or if it descends from such a one: Flower and Ray start
theirs in sessions of their own and leave orphans, and some overwrite their environment with a title. In the end FOLDER
is removed.
"""

import shutil
import sys
from contextlib import suppress
from pathlib import Path

import psutil

STOP_SECONDS = 15.0


def main() -> None:
    """Waits for the end of standard input, then stops and removes."""
    folder = Path(sys.argv[1])
    sys.stdin.buffer.read()
    stop_processes(folder)
    shutil.rmtree(folder, ignore_errors=True)


def stop_processes(folder: Path) -> None:
    """Asks the folder's processes to end, and ends those that do not."""
    processes: set[psutil.Process] = set()
    for end in (psutil.Process.terminate, psutil.Process.kill):
        processes |= processes_of(folder)
        for process in processes:
            with suppress(psutil.Error):
                end(process)
        psutil.wait_procs(processes, timeout=STOP_SECONDS)


def processes_of(folder: Path) -> set[psutil.Process]:
    """Returns the live processes of this user that belong to the folder."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it ended meanwhile, or is another user's
            if process.environ().get("FLWR_HOME") == str(folder):
                found |= {process, *process.children(recursive=True)}
    return found


if __name__ == "__main__":
    main()
