"""Kills a piece of work by SIGKILL before each of its durable writes in turn: real processes, real files."""

import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FORK = multiprocessing.get_context("fork")
DURABLE = ("fsync", "replace", "rename", "link", "symlink", "unlink", "mkdir")
"""What a crash can fall between: everything that changes a name, or waits for the disk."""


def _dying(work: Callable[[], object], kill_before: int) -> None:
    calls = 0

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            nonlocal calls
            calls += 1
            if calls == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return call

    for name in DURABLE:
        setattr(os, name, counted(getattr(os, name)))
    work()


def every_kill(work: Callable[[], object]) -> Iterator[int]:
    """Yields after each kill, and ends when the work got to its end. Each run finds what the one before left."""
    kill_before = 1
    while True:
        process = FORK.Process(target=_dying, args=(work, kill_before), daemon=True)
        process.start()
        process.join()
        if process.exitcode == 0:
            return
        assert process.exitcode == -signal.SIGKILL, "the work failed instead of being killed"
        yield kill_before
        kill_before += 1


@contextmanager
def no_file_larger_than(size_bytes: int) -> Iterator[None]:
    """Makes every write beyond a size fail, in the middle of the data, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
