"""Keeps the processes of one side of a federation running, until one of them has done what all are for.

Every process has a session and a log of its own. One that dies is started again, after a pause that doubles with each
early death; one whose files have changed since its start is asked to end, and starts again with the new ones. If the
supervisor itself is killed, ``process_guard`` ends them all: the next start finds no orphan.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from scaleot_core.errors import InputError, OutputError
from scaleot_core.process_guard import guarded
from scaleot_core.progress import Reporter

POLL_SECONDS = 0.25
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
HEALTHY_SECONDS = 60.0
"""Who lived this long starts again at once when it dies."""
LOOK_SECONDS = 5.0
"""Between two looks at the files that a process reads at its start alone."""
DRAIN_SECONDS = 20.0
"""What the processes have to finish what they are at, all together; then they are killed."""
MAX_LOG_BYTES = 32 * 1024 * 1024
"""A log above it is set aside as ``NAME.log.1`` at its process's next start."""

_KEPT_VARIABLES = ("HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "XDG_CACHE_HOME", "USER", "LOGNAME")
_KEPT_PREFIXES = ("LC_", "OMP_", "MKL_", "GOMP_", "CUDA_", "NVIDIA_", "SCALEOT_")
OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # its default is to install torch anew, from the network
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "GOMP_SPINCOUNT": "20000",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}
"""For Flower's programs and what they load: no telemetry, no look at the network, threads that wait well."""


@dataclass(frozen=True)
class SupervisedProcess:
    """What to start, and under which name people know it."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    is_purpose: bool = False
    """All are stopped when this one is done; its exit code is that of the whole."""
    start_files: Callable[[], bytes | None] = field(default=lambda: None, repr=False)
    """Returns a digest of what the process reads at its start alone, or ``None`` while that cannot be used."""


def child_environment(flower_home: Path, **variables: str) -> dict[str, str]:
    """Returns the environment of a child: offline, with Flower's files in ``flower_home``, and without secrets.

    Of this process's own environment only what locates files, language and devices goes along.
    """
    kept = {
        name: value for name, value in os.environ.items() if name in _KEPT_VARIABLES or name.startswith(_KEPT_PREFIXES)
    }
    scripts = str(Path(sys.executable).parent)  # Flower starts its own programs by name
    path = os.pathsep.join((scripts, os.environ.get("PATH", os.defpath)))
    return {**kept, **OFFLINE, "PATH": path, "FLWR_HOME": str(flower_home), "PYTHONUNBUFFERED": "1", **variables}


def installed_program(name: str) -> str:
    """Returns the path of a command of this Python's environment."""
    return str(Path(sys.executable).parent / name)


def become(program: str, *arguments: str) -> NoReturn:
    """Turns this process into a program of its environment: its id, its locks and its variables stay."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(installed_program(program), [program, *arguments])  # noqa: S606 - no shell, and our own arguments


def part_home(state: Path, part: str) -> Path:
    """Returns a part's ``FLWR_HOME``, made if need be: Flower's processes race in one that they share."""
    directory = state / part
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


@contextmanager
def sole_process(lock: Path) -> Iterator[None]:
    """Holds a file's lock, which ends with this process however it ends, and survives ``exec``.

    Raises:
        InputError: another process holds it; the message names its id.
        OutputError: the file cannot be written.
    """
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise OutputError(f"{lock} cannot be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise InputError(
                f"{lock.parent} is in use by another process (id {holder}). Stop that one first, or choose another home"
            ) from error
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        os.set_inheritable(descriptor, True)
        yield
    finally:
        os.close(descriptor)


def supervise(processes: Sequence[SupervisedProcess], folder: Path, reporter: Reporter) -> int:
    """Runs the processes until the one with ``is_purpose`` is done or a signal comes, and returns the exit code.

    Their logs are ``folder/logs/NAME.log``; ``FLWR_HOME`` of each lies in ``folder``. SIGTERM and SIGINT stop all, the
    last started first, and give 0.
    """
    logs = folder / "logs"
    logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    running = [_Running(process, logs / f"{process.name}.log", reporter) for process in processes]
    with guarded(folder) as leash, _asked_to_stop() as asked:
        try:
            return _keep_running(running, asked, leash)
        finally:
            _stop(running)


class _Running:
    """One process, through all its lives."""

    def __init__(self, process: SupervisedProcess, log: Path, reporter: Reporter) -> None:
        self.process, self._log, self._reporter = process, log, reporter
        self._popen: subprocess.Popen[bytes] | None = None
        self._started, self._next_start, self._pause = 0.0, 0.0, FIRST_PAUSE_SECONDS
        self._start_files: bytes | None = None
        self._next_look, self._asked_to_end_at = 0.0, 0.0

    def look(self, leash: Callable[[str], None]) -> int | None:
        """Starts the process if it is due, and returns the exit code of the whole if this was its purpose."""
        now = time.monotonic()
        if self._popen is None:
            if now >= self._next_start:
                leash(f"+{self._start(now)}")
            return None
        code = self._popen.poll()
        if code is None:
            self._end_if_outdated(now)
            return None
        self.signal(signal.SIGTERM)  # what is left of its session
        leash(f"-{self._popen.pid}")
        self._popen = None
        if self.process.is_purpose and code >= 0:
            return code
        if now - self._started >= HEALTHY_SECONDS:
            self._pause = FIRST_PAUSE_SECONDS
        self._next_start = now + self._pause
        self._reporter.note(f"{self.process.name} ended ({_ended(code)}); again in {self._pause:g} s: {self._log}")
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        return None

    def signal(self, number: signal.Signals) -> None:
        """Signals the whole session."""
        if self._popen is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._popen.pid, number)

    def wait(self, deadline: float) -> None:
        """Waits for the end until a deadline on the monotonic clock."""
        if self._popen is not None:
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(max(deadline - time.monotonic(), 0.0))

    def _end_if_outdated(self, now: float) -> None:
        """Asks a process to end whose files can be used and are not those that it has read, and kills it in the end."""
        if self._asked_to_end_at:
            if now - self._asked_to_end_at > DRAIN_SECONDS:
                self.signal(signal.SIGKILL)
        elif now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            present = self.process.start_files()
            if present is not None and present != self._start_files:
                self._reporter.note(f"{self.process.name} is started again: its files have changed")
                self._asked_to_end_at = now
                self.signal(signal.SIGTERM)

    def _start(self, now: float) -> int:
        self._start_files = self.process.start_files()  # before it reads them: a change meanwhile is seen later
        self._next_look, self._asked_to_end_at = now + LOOK_SECONDS, 0.0
        if self._log.exists() and self._log.stat().st_size > MAX_LOG_BYTES:
            self._log.replace(self._log.with_name(f"{self._log.name}.1"))
        descriptor = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "ab") as log:
            self._popen = subprocess.Popen(  # noqa: S603 - no shell, and our own commands
                self.process.command,
                env=dict(self.process.environment),
                cwd=self._log.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started = now
        return self._popen.pid


def _keep_running(running: Sequence[_Running], asked: Sequence[int], leash: Callable[[str], None]) -> int:
    while not asked:
        for one in running:
            code = one.look(leash)
            if code is not None:
                return code
        time.sleep(POLL_SECONDS)
    return 0


def _stop(running: Sequence[_Running]) -> None:
    deadline = time.monotonic() + DRAIN_SECONDS
    for one in reversed(running):
        one.signal(signal.SIGTERM)
    for one in reversed(running):
        one.wait(deadline)
        one.signal(signal.SIGKILL)  # what is left of its session
        one.wait(deadline + 5.0)


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """Yields a list that gets the number of each signal that asks this process to end."""
    asked: list[int] = []
    kept = {
        number: signal.signal(number, lambda got, _: asked.append(got)) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield asked
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
