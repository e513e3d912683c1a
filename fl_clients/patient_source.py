"""Asks a source that fails now and then until it has answered, or a deadline has passed."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator

from fl_clients.sources import Source
from scaleot_core.errors import FetchError, SourceInterruptedError

REQUEST_SECONDS = 60.0
"""For one request. One that is cut off here goes on where it was, so this bounds a hang and not a slow line."""
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 15.0

_RANDOM = secrets.SystemRandom()


class PatientSource:
    """A source with one deadline for all threads of a fetch, and their way to stop one another.

    Every method that reads raises ``FetchError``: that of the source where it is not one that may pass, and after the
    deadline or a stop.
    """

    def __init__(self, source: Source, *, deadline_seconds: float) -> None:
        self._source, self._deadline_seconds = source, deadline_seconds
        self._end = time.monotonic() + deadline_seconds
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Makes every thread that reads from here give up."""
        self._stopped.set()

    def repository_file(self, name: str, most_bytes: int) -> bytes:
        """Returns a small file of the repository, of which no more than ``most_bytes`` and one are read."""
        return self._patiently(lambda seconds: self._source.repository_file(name, most_bytes, timeout_seconds=seconds))

    def grant(self, digest: str) -> bytes:
        """Returns what the source calls the own organisation's grant of a bundle."""
        return self._patiently(lambda seconds: self._source.grant(digest, timeout_seconds=seconds))

    def read_range(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        """Yields the bytes of an object from ``start`` to ``stop``; interrupted, it asks again from where it was."""
        failures = 0
        while start < stop:
            cause = SourceInterruptedError(f"object {name}: a reply ended before byte {stop}")
            try:
                for piece in self._source.read_range(
                    name, start, stop - start, timeout_seconds=self._timeout_seconds()
                ):
                    self._check_is_going_on()
                    if len(piece) > stop - start:
                        raise FetchError(f"object {name}: the source gives more bytes than it was asked for")
                    yield piece
                    start += len(piece)
                    failures = 0 if piece else failures
            except SourceInterruptedError as error:
                cause = error
            if start < stop:
                failures += 1
                self._pause(failures, cause)

    def _patiently(self, ask: Callable[[float], bytes]) -> bytes:
        failures = 0
        while True:
            try:
                return ask(self._timeout_seconds())
            except SourceInterruptedError as error:
                failures += 1
                self._pause(failures, error)

    def _timeout_seconds(self) -> float:
        self._check_is_going_on()
        left = self._end - time.monotonic()
        if left <= 0:
            raise self._too_late("none; it was still coming")
        return min(left, REQUEST_SECONDS)

    def _pause(self, failures: int, cause: SourceInterruptedError) -> None:
        """Waits, longer after each failure in a row."""
        longest = min(FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 30), LONGEST_PAUSE_SECONDS)
        seconds = longest * _RANDOM.uniform(0.5, 1.0)  # so that clients cut off together do not come back together
        if time.monotonic() + seconds >= self._end:
            raise self._too_late(str(cause)) from cause
        self._stopped.wait(seconds)

    def _check_is_going_on(self) -> None:
        if self._stopped.is_set():
            raise FetchError("the fetch was stopped")

    def _too_late(self, failure: str) -> FetchError:
        return FetchError(
            f"the bundle was not fetched within {self._deadline_seconds:g} seconds. What came is kept: fetch again to "
            f"go on from there. Last failure: {failure}"
        )
