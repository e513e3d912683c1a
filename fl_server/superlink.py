"""A running SuperLink and how to talk to it: by the ``flwr`` command, which is the stable way to its control port."""

import json
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaleot_core.errors import EngineError
from scaleot_core.supervision import installed_program

START_SECONDS = 60.0
_CONNECTION = "federation"
_COMMAND_SECONDS = 120.0
_REGISTERED_ALREADY = "Public key already in use"


@dataclass(frozen=True)
class SuperLink:
    """A running SuperLink, by the connection that ``write_connection`` wrote to ``folder``."""

    environment: Mapping[str, str]
    folder: Path

    def submit(self, app: Path, *, settings: str | None = None) -> str:
        """Submits the app in a directory with ``flwr run`` and returns the run's id.

        Raises:
            EngineError: Flower does not take it.
        """
        options = () if settings is None else ("--federation-config", settings)
        answer = self._ask("run", str(app), _CONNECTION, *options, "--format", "json")
        return str(answer["run-id"])

    def status(self, run_id: str) -> str:
        """Returns the run's status, such as ``running`` or ``finished:completed``.

        ``flwr run`` itself returns 0 for a run that fails.
        """
        answer = self._ask("list", _CONNECTION, "--run-id", run_id, "--format", "json")
        return str(answer["runs"][0]["status"])

    def register(self, public_key: Path) -> None:
        """Lets the SuperNode with the OpenSSH public key of a file in; one that was let in before stays.

        Raises:
            EngineError: Flower does not take it.
        """
        done = self._flwr("supernode", "register", str(public_key), _CONNECTION, "--format", "json")
        said = done.stdout + done.stderr
        if '"success": true' not in said and _REGISTERED_ALREADY not in said:
            raise EngineError(f"flwr supernode register failed: {tail(said)}")

    def log(self, run_id: str) -> str:
        """Returns what ServerApp and simulation printed; it is not in the SuperLink's own output."""
        return self._flwr("log", run_id, _CONNECTION, "--show").stdout

    def _ask(self, *arguments: str) -> Any:
        done = self._flwr(*arguments)
        try:
            answer = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError as error:
            raise EngineError(f"flwr {arguments[0]} gave no answer: {tail(done.stdout + done.stderr)}") from error
        if not answer.get("success"):
            raise EngineError(f"flwr {arguments[0]} failed: {tail(done.stdout + done.stderr)}")
        return answer

    def _flwr(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [installed_program("flwr"), *arguments]
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


def write_connection(folder: Path, port: int, authority: Path | None) -> None:
    """Writes the ``config.toml`` by which ``flwr`` finds a SuperLink on loopback; ``None`` is one without TLS."""
    trust = "insecure = true" if authority is None else f"root-certificates = {json.dumps(str(authority.absolute()))}"
    (folder / "config.toml").write_text(
        f'[superlink]\ndefault = "{_CONNECTION}"\n\n[superlink.{_CONNECTION}]\naddress = "127.0.0.1:{port}"\n{trust}\n',
        encoding="utf-8",
    )


def wait_until_healthy(port: int, authority: Path | None, has_ended: Callable[[], bool] = lambda: False) -> bool:
    """Waits up to a minute for a SuperLink on loopback to answer, and returns whether it does."""
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if authority is not None:
        handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=authority)))
    opener = urllib.request.build_opener(*handlers)
    url = f"{'http' if authority is None else 'https'}://127.0.0.1:{port}/health"
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and not has_ended():
        try:
            with opener.open(url, timeout=1.0):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    return False


def tail(text: str, lines: int = 30) -> str:
    """Returns the last lines of what a program said, for a message to people."""
    return "\n".join(text.strip().splitlines()[-lines:]) or "it said nothing"
