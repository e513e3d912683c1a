"""A SuperLink of our own for one simulation: offline, in a temporary folder, on a free port, gone afterwards."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaleot_core.errors import EngineError

_CONNECTION = "simulation"
_START_SECONDS = 60.0
_COMMAND_SECONDS = 120.0
_LONGEST_DIRECTORY = 20

_OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # its default is to install torch anew, from the network
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # its default gives way to every other process of the machine
    "HF_HUB_OFFLINE": "1",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}


@dataclass(frozen=True)
class SuperLink:
    """A running SuperLink in simulation mode, and how to talk to it."""

    environment: Mapping[str, str]
    folder: Path

    def submit(self, app: Path, *, settings: str) -> str:
        """Submits the app in a directory with ``flwr run`` and returns the run's id.

        Raises:
            EngineError: Flower does not take it.
        """
        answer = self._ask("run", str(app), _CONNECTION, "--federation-config", settings, "--format", "json")
        return str(answer["run-id"])

    def status(self, run_id: str) -> str:
        """Returns the run's status, such as ``running`` or ``finished:completed``.

        ``flwr run`` itself returns 0 for a run that fails.
        """
        answer = self._ask("list", _CONNECTION, "--run-id", run_id, "--format", "json")
        return str(answer["runs"][0]["status"])

    def log(self, run_id: str) -> str:
        """Returns what ServerApp and simulation printed; it is not in the SuperLink's own output."""
        return self._flwr("log", run_id, _CONNECTION, "--show").stdout

    def _ask(self, *arguments: str) -> Any:
        done = self._flwr(*arguments)
        try:
            answer = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError as error:
            raise EngineError(f"flwr {arguments[0]} gave no answer: {_tail(done.stdout + done.stderr)}") from error
        if not answer.get("success"):
            raise EngineError(f"flwr {arguments[0]} failed: {_tail(done.stdout + done.stderr)}")
        return answer

    def _flwr(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [_script("flwr"), *arguments]
        try:
            return subprocess.run(  # noqa: S603 - no shell, and our own arguments
                command,
                env=dict(self.environment),
                cwd=self.folder,
                capture_output=True,
                text=True,
                timeout=_COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise EngineError(f"flwr {arguments[0]} did not answer in {_COMMAND_SECONDS:g} s") from error


@contextmanager
def running_superlink(variables: Mapping[str, str]) -> Iterator[SuperLink]:
    """Lends a SuperLink that keeps all its state in a folder of its own; nothing of it is left at the end.

    Anybody on this machine who reaches its loopback port can submit a run, as with ``flwr run``'s own local SuperLink.

    Raises:
        EngineError: it does not start.
    """
    port, folder = _free_port(), Path(tempfile.mkdtemp(prefix="scaleot-", dir=_short_directory()))
    environment = _environment(folder, variables)
    (folder / "config.toml").write_text(
        f'[superlink]\ndefault = "{_CONNECTION}"\n\n[superlink.{_CONNECTION}]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n',
        encoding="utf-8",
    )
    command = [_script("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--database", str(folder / "state.db")]
    with _guard(folder), (folder / "superlink.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - no shell, and our own arguments
            command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        _wait_until_healthy(process, port, folder / "superlink.log")
        yield SuperLink(environment, folder)


@contextmanager
def _guard(folder: Path) -> Iterator[None]:
    """Has every process of the folder stopped, and the folder removed, even if this process is killed."""
    command = [sys.executable, "-m", "fl_server.process_guard", str(folder)]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603 - as above
    try:
        yield
    finally:
        guard.communicate()  # closes its standard input and waits


def _environment(folder: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment without proxies, offline, with Flower's and Ray's state in ``folder``."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    scripts = str(Path(sys.executable).parent)  # Flower starts its own programs by name
    path = os.pathsep.join((scripts, kept.get("PATH", os.defpath)))
    return {**kept, **_OFFLINE, "PATH": path, "FLWR_HOME": str(folder), "RAY_TMPDIR": str(folder), **variables}


def _script(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _short_directory() -> str:
    """Where the folder goes: Ray's sockets lie 70 bytes below it, and a socket's path has at most 107."""
    usual = tempfile.gettempdir()
    return usual if len(usual) <= _LONGEST_DIRECTORY else "/tmp"  # noqa: S108 - mkdtemp makes it safe


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_healthy(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with opener.open(f"http://127.0.0.1:{port}/health", timeout=1.0):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise EngineError(f"Flower's SuperLink did not start: {_tail(log.read_text(errors='replace'))}")


def _tail(text: str, lines: int = 30) -> str:
    return "\n".join(text.strip().splitlines()[-lines:]) or "it said nothing"
