"""The step that training is at: the trainer leaves it in the home, and the agent tells the model owner.

Only the agent reaches the network. What it sends is a ``TrainingRequest``: round, attempt, step and number of steps,
which the model owner has set itself, and never a loss, which would be a release of private data. It is sent as it
comes, at most every five seconds; nothing waits for it, and what is lost is lost.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fl_clients.grpc_source import GrpcSource
from scaleot_core.bundle.canonical import read_document, write_document
from scaleot_core.bundle.distribution import MAX_REQUEST_BYTES, TrainingRequest
from scaleot_core.bundle.files import read_small_file, replace_file
from scaleot_core.errors import FetchError, InputError, VerificationError
from scaleot_core.federation.messages import Instructions
from scaleot_core.progress import LogReporter

STEP_FILE = Path("flower", "step.json")
"""In the home, while training is under way."""
STEP_SECONDS = 5.0
"""At least so long lies between two writes of the file, and between two reports."""
TELL_SECONDS = 5.0
"""A report that takes longer is given up."""


class StepReporter:
    """Leaves the step of each stage in a file; where nothing runs that would read it, there is no place and no file."""

    def __init__(self, home: Path, instructions: Instructions) -> None:
        self._path, self._instructions = home / STEP_FILE, instructions

    @contextmanager
    def stage(self, name: str, *, steps: int) -> Iterator["StepStage"]:
        """Opens a stage, whose file is gone when it ends."""
        stage = StepStage(self._path, self._instructions, steps)
        try:
            stage.advance(0)
            yield stage
        finally:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def note(self, text: str) -> None:
        """Says one line in the trainer's own log, which stays with the data owner."""
        LogReporter().note(text)


class StepStage:
    """A stage that counts its steps, and forgets their losses."""

    def __init__(self, path: Path, instructions: Instructions, steps: int) -> None:
        self._path, self._instructions, self._steps = path, instructions, steps
        self._done, self._due = 0, time.monotonic()

    def advance(self, steps: int = 1, *, loss: float | None = None) -> None:
        """Counts, and writes what it has counted if the last time is long enough ago; a full disk costs no more."""
        del loss
        self._done += steps
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + STEP_SECONDS
        step = TrainingRequest(
            attempt=self._instructions.attempt, round=self._instructions.round, step=self._done, steps=self._steps
        )
        with suppress(OSError):
            replace_file(self._path, write_document(step), mode=0o600)


def read_step(home: Path) -> TrainingRequest | None:
    """Returns the step that training is at, or ``None`` if none is under way."""
    try:
        data = read_small_file(home / STEP_FILE, MAX_REQUEST_BYTES)
        return read_document(TrainingRequest, data, kind="request", limit_bytes=MAX_REQUEST_BYTES)
    except (InputError, VerificationError):
        return None


def tell_steps(
    source: GrpcSource, home: Path, *, seconds: float, told: TrainingRequest | None
) -> TrainingRequest | None:
    """Tells the model owner each new step for so many seconds; returns the last one told, which was ``told`` before."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(STEP_SECONDS, left))
        step = read_step(home)
        if step is not None and step != told:
            with suppress(FetchError):
                source.tell_training(step, timeout_seconds=TELL_SECONDS)
                told = step
    return told
