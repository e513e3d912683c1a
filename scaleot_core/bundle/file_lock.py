"""One process at a time: a lock file that a process which dies lets go of."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from scaleot_core.errors import InputError, OutputError


@contextmanager
def locked(lock: Path, *, in_use: str, wait_seconds: float = 0.0) -> Iterator[None]:
    """Keeps every other process out of what ``lock`` stands for; its directory is made, for this user alone.

    Raises:
        InputError: another process is in it for all of ``wait_seconds``; ``in_use`` is the message.
        OutputError: the directory cannot be written.
    """
    try:
        lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = FileLock(lock, timeout=wait_seconds, mode=0o600)
        held.acquire()
    except Timeout as error:
        raise InputError(in_use) from error
    except OSError as error:
        raise OutputError(f"{lock.parent} cannot be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        held.release()
