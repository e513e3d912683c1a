"""How long the stages of a run take."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from scaleot_core.report import StageSeconds


class Stopwatch:
    """Adds up wall seconds by stage; stages do not overlap."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time inside as this stage's."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - started)

    def add(self, name: str, seconds: float) -> None:
        """Counts seconds that were measured elsewhere."""
        self._seconds[name] += seconds

    def read(self) -> StageSeconds:
        """Returns the sums so far; ``total`` runs since the stopwatch was made."""
        names = ("load", "importance", "build", "seal", "open", "train", "aggregate", "evaluate")
        return StageSeconds(**{name: self._seconds[name] for name in names}, total=time.monotonic() - self._started)
