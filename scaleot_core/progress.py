"""How long work reports its progress: a bar on a terminal, a line now and then in a log, silence in tests.

Algorithms take a ``Reporter`` and open one stage for each long loop::

    with reporter.stage("importance", steps=300) as stage:
        for _ in range(300):
            ...
            stage.advance(loss=value)
"""

import sys
import time
from collections.abc import Iterator
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
class Reporter(Protocol):
    """Where progress goes."""

    def stage(self, name: str, *, steps: int) -> AbstractContextManager[Stage]:
        """Opens a stage of ``steps`` steps."""

    def note(self, text: str) -> None:
        """Says one line: never example text, a key, or a single client's loss."""


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

    def __init__(self, name: str, steps: int, stream: TextStream) -> None:
        self._name, self._steps, self._stream = name, steps, stream
        self._done, self._loss = 0, ""
        self._started = self._last_line = time.monotonic()

    def advance(self, steps: int = 1, *, loss: float | None = None) -> None:
        """Counts the steps; writes a line when the last one is long enough ago."""
        self._done += steps
        if loss is not None:
            self._loss = f"  loss {loss:.4f}"
        if time.monotonic() - self._last_line >= LOG_INTERVAL_SECONDS:
            self._last_line = time.monotonic()
            left = (self._last_line - self._started) / max(self._done, 1) * max(self._steps - self._done, 0)
            self._write(f"{self._done}/{self._steps}{self._loss}  {left:.0f} s left")

    def close(self) -> None:
        """Writes the line that ends the stage."""
        self._write(f"{self._done}/{self._steps}{self._loss}  done in {time.monotonic() - self._started:.1f} s")

    def _write(self, text: str) -> None:
        self._stream.write(f"{self._name}: {text}\n")
        self._stream.flush()


class LogReporter:
    """Writes lines to a stream that is no terminal (standard error); a stage that fails writes no last line."""

    def __init__(self, stream: TextStream | None = None) -> None:
        self._stream = stream or sys.stderr

    @contextmanager
    def stage(self, name: str, *, steps: int) -> Iterator[LogStage]:
        """Opens a stage that writes a line now and then and one at its end."""
        stage = LogStage(name, steps, self._stream)
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
