"""One process at a time works in a run's directory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from scaleot_core.errors import InputError, OutputError

LOCK_FILE = "rounds.lock"


@contextmanager
def locked_run(directory: Path) -> Iterator[None]:
    """Keeps every other process out of a run's directory; a process that dies lets go of it.

    Raises:
        InputError: another process is in it.
        OutputError: the directory cannot be written.
    """
    if not directory.is_dir():  # the lock would make it
        raise OutputError(f"{directory} cannot be written: it is no directory")
    lock = FileLock(directory / LOCK_FILE, timeout=0, mode=0o600)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"another process conducts the rounds in {directory}: it holds {LOCK_FILE}. End it first, or wait"
        ) from error
    except OSError as error:
        raise OutputError(f"{directory / LOCK_FILE} cannot be written: {error}") from error
    try:
        yield
    finally:
        lock.release()
