"""How long work reports its progress: a bar on a terminal, a line now and then in a log, silence in tests.

Algorithms take a ``Reporter`` and open one stage for each long loop::

    with reporter.stage("importance", steps=300) as stage:
        for _ in range(300):
            ...
            stage.advance(loss=value)

A step whose result was there already is told by ``advance_found(stage)``, so that the time left does not count it.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

LOG_INTERVAL_SECONDS = 15.0


@runtime_checkable
class TextStream(Protocol):
    """Where lines go: a file, a terminal, a buffer."""

    def write(self, text: str, /) -> object:
        """Takes a text."""

    def flush(self) -> object:
        """Sends on what it took."""


@runtime_checkable
class Stage(Protocol):
    """One long loop that is under way."""

    def advance(self, steps: int = 1, *, loss: float | None = None) -> None:
        """Says that ``steps`` more steps are done, and the loss of the last one."""


@runtime_checkable
class TimedStage(Stage, Protocol):
    """A stage that says how much time is left."""

    def advance_found(self, steps: int) -> None:
        """Says that ``steps`` more steps are done whose results were found, not computed: their time is not counted."""


@runtime_checkable
class Reporter(Protocol):
    """Where progress goes."""

    def stage(self, name: str, *, steps: int) -> AbstractContextManager[Stage]:
        """Opens a stage of ``steps`` steps."""

    def note(self, text: str) -> None:
        """Says one line: never example text, a key, or a single client's loss."""


def advance_found(stage: Stage, steps: int = 1) -> None:
    """Says that ``steps`` more steps are done whose results were found, not computed.

    Guarantees that the time left, where the stage tells it, is that of computed steps alone.
    """
    if isinstance(stage, TimedStage):
        stage.advance_found(steps)
    else:
        stage.advance(steps)


class Pace:
    """How many of a stage's steps are done, and how long those take that are computed."""

    def __init__(self, steps: int, clock: Callable[[], float]) -> None:
        """Starts now; ``clock`` tells seconds."""
        self._steps, self._clock = steps, clock
        self._last, self._seconds, self._computed = clock(), 0.0, 0
        self.done = 0

    def add_computed(self, steps: int) -> None:
        """Counts steps that took the time since the last call."""
        now = self._clock()
        self._seconds, self._last = self._seconds + now - self._last, now
        self._computed += steps
        self.done += steps

    def add_found(self, steps: int) -> None:
        """Counts steps and forgets the time since the last call."""
        self._last = self._clock()
        self.done += steps

    def seconds_left(self) -> float | None:
        """Returns what the steps left take if all are computed, or ``None`` while none was."""
        left = max(self._steps - self.done, 0)
        if left and not self._computed:
            return None
        return self._seconds / max(self._computed, 1) * left


class SilentStage:
    """A stage nobody watches."""

    def advance(self, steps: int = 1, *, loss: float | None = None) -> None:
        """Does nothing."""


class SilentReporter:
    """Reports nothing: for tests and for callers that only want the result."""

    @contextmanager
    def stage(self, name: str, *, steps: int) -> Iterator[SilentStage]:
        """Opens a stage nobody watches."""
        yield SilentStage()

    def note(self, text: str) -> None:
        """Does nothing."""


class LogStage:
    """A stage that writes a line now and then."""

    def __init__(self, name: str, steps: int, stream: TextStream, clock: Callable[[], float]) -> None:
        self._name, self._steps, self._stream, self._clock = name, steps, stream, clock
        self._pace, self._loss = Pace(steps, clock), ""
        self._started = self._last_line = clock()

    def advance(self, steps: int = 1, *, loss: float | None = None) -> None:
        """Counts the steps; writes a line when the last one is long enough ago."""
        self._pace.add_computed(steps)
        if loss is not None:
            self._loss = f"  loss {loss:.4f}"
        self._write_if_due()

    def advance_found(self, steps: int) -> None:
        """Counts the steps without their time; writes a line when the last one is long enough ago."""
        self._pace.add_found(steps)
        self._write_if_due()

    def close(self) -> None:
        """Writes the line that ends the stage."""
        self._write(f"{self._counts()}  done in {self._clock() - self._started:.1f} s")

    def _write_if_due(self) -> None:
        if self._clock() - self._last_line < LOG_INTERVAL_SECONDS:
            return
        self._last_line = self._clock()
        left = self._pace.seconds_left()
        self._write(self._counts() + ("" if left is None else f"  {left:.0f} s left"))

    def _counts(self) -> str:
        return f"{self._pace.done}/{self._steps}{self._loss}"

    def _write(self, text: str) -> None:
        self._stream.write(f"{self._name}: {text}\n")
        self._stream.flush()


class LogReporter:
    """Writes lines to a stream that is no terminal (standard error); a stage that fails writes no last line."""

    def __init__(self, stream: TextStream | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream or sys.stderr, clock

    @contextmanager
    def stage(self, name: str, *, steps: int) -> Iterator[LogStage]:
        """Opens a stage that writes a line now and then and one at its end."""
        stage = LogStage(name, steps, self._stream, self._clock)
        yield stage
        stage.close()

    def note(self, text: str) -> None:
        """Writes one line."""
        self._stream.write(text + "\n")
        self._stream.flush()


def terminal_or_log_reporter() -> Reporter:
    """Returns a reporter for standard error: bars where it is a terminal, lines where it is not."""
    if not sys.stderr.isatty():
        return LogReporter()
    from rich.console import Console  # rich costs a tenth of a second

    from scaleot_core.progress_bars import BarReporter

    return BarReporter(Console(stderr=True))
