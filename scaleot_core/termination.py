"""SIGTERM ends a command by an exception, so that what it keeps for a while, private text and keys, goes with it."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM
_AGAIN_SECONDS = 0.25


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Ends what runs inside with ``EXIT_CODE`` when SIGTERM comes; for the main thread.

    An exception from a signal's handler can arrive in a callback of a library in C, which drops it or makes another of
    it: pydantic's serializers and SQLite's functions do. Hence it is raised again until it is seen on its way, and
    whatever leaves the block after SIGTERM leaves it as ``SystemExit``. While an exception is being handled none is
    raised: the ``finally`` that removes a directory is not interrupted.

    Raises:
        SystemExit: SIGTERM came, with ``EXIT_CODE``.
    """
    asked = False

    def end(_: int, __: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        if sys.exc_info()[1] is None:
            raise SystemExit(EXIT_CODE)

    numbers = (signal.SIGALRM, signal.SIGTERM)
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield
    except BaseException:
        if not asked:
            raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    if asked:
        raise SystemExit(EXIT_CODE)
