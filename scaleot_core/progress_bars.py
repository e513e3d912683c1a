"""Progress bars on a terminal: stage, step, loss and time left."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class BarStage:
    """A stage shown as one bar."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, steps: int = 1, *, loss: float | None = None) -> None:
        """Moves the bar and shows the loss of the last step."""
        if loss is None:
            self._progress.advance(self._task, steps)
        else:
            self._progress.update(self._task, advance=steps, loss=f"loss {loss:.4f}")


class BarReporter:
    """Shows bars: the outermost stage's stays, those of stages inside it (of several threads, too) go when they end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._open_stages = 0

    @contextmanager
    def stage(self, name: str, *, steps: int) -> Iterator[BarStage]:
        """Opens a stage shown as one bar."""
        progress, is_outermost = self._enter()
        task = progress.add_task(name, total=steps, loss="")
        try:
            yield BarStage(progress, task)
        finally:
            if not is_outermost:
                progress.remove_task(task)
            self._leave(progress)

    def note(self, text: str) -> None:
        """Prints one line, above the bars."""
        self._console.print(text, markup=False, highlight=False)

    def _enter(self) -> tuple[Progress, bool]:
        with self._lock:
            self._open_stages += 1
            if self._progress is not None:
                return self._progress, False
            self._progress = _new_progress(self._console)
            self._progress.start()
            return self._progress, True

    def _leave(self, progress: Progress) -> None:
        with self._lock:
            self._open_stages -= 1
            if self._open_stages == 0:
                progress.stop()
                self._progress = None


def _new_progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<28}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
