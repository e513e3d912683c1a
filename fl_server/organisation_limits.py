"""How much of a service one organisation may use at once, so that none keeps the others out."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a distribution service gives at once; each stream costs a thread and about 1 MiB."""

    streams: int = 16
    """Of all organisations together."""
    streams_per_organisation: int = 8
    requests_per_second: float = 50.0
    """Of one organisation, on average; of requests at their largest that is 800 MiB/s."""
    requests_at_once: int = 100
    """That it may save up while it asks for less."""


DEFAULT_LIMITS = Limits()


class OrganisationLimits:
    """Counts what each organisation uses; safe between threads.

    It remembers every organisation that ever entered, so only organisations that are known may be let in.
    """

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._lock = threading.Lock()
        self._streams: dict[str, int] = {}
        self._requests: dict[str, tuple[float, float]] = {}  # how many are left, and at which moment

    def refuse(self, organisation: str) -> str | None:
        """Returns why a request has to wait, or counts it and returns ``None``: then ``leave`` must follow."""
        with self._lock:
            if self._streams.get(organisation, 0) >= self._limits.streams_per_organisation:
                return f"at most {self._limits.streams_per_organisation} streams at once"
            now = self._clock()
            left, before = self._requests.get(organisation, (float(self._limits.requests_at_once), now))
            left = min(left + (now - before) * self._limits.requests_per_second, self._limits.requests_at_once)
            if left < 1:
                self._requests[organisation] = (left, now)
                return f"at most {self._limits.requests_per_second:g} requests a second"
            self._requests[organisation] = (left - 1, now)
            self._streams[organisation] = self._streams.get(organisation, 0) + 1
            return None

    def leave(self, organisation: str) -> None:
        """Counts the end of a request."""
        with self._lock:
            self._streams[organisation] -= 1
