"""One process at a time works in a run's directory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scaleot_core.bundle.file_lock import locked
from scaleot_core.errors import OutputError

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
    in_use = f"another process conducts the rounds in {directory}: it holds {LOCK_FILE}. End it first, or wait"
    with locked(directory / LOCK_FILE, in_use=in_use):
        yield
