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
)

from scaleot_core.progress import Pace


class BarStage:
    """A stage shown as one bar."""

    def __init__(self, progress: Progress, task: TaskID, pace: Pace) -> None:
        self._progress, self._task, self._pace, self._loss = progress, task, pace, ""

    def advance(self, steps: int = 1, *, loss: float | None = None) -> None:
        """Moves the bar and shows the loss of the last step and the time left."""
        self._pace.add_computed(steps)
        if loss is not None:
            self._loss = f"loss {loss:.4f}"
        self._move(steps)

    def advance_found(self, steps: int) -> None:
        """Moves the bar; the time left is that of computed steps alone."""
        self._pace.add_found(steps)
        self._move(steps)

    def _move(self, steps: int) -> None:
        left = _time_text(self._pace.seconds_left())
        self._progress.update(self._task, advance=steps, loss=self._loss, left=left)


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
        task = progress.add_task(name, total=steps, loss="", left=_time_text(None))
        try:
            yield BarStage(progress, task, Pace(steps, self._console.get_time))
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


def _time_text(seconds: float | None) -> str:
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _new_progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<28}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TextColumn("{task.fields[left]}"),  # rich's own column forgets a step of over 30 s and times what was found
        console=console,
    )
