"""A SuperLink of our own for one simulation: offline, in a temporary folder, on a free port, gone afterwards."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fl_server.superlink import SuperLink, tail, wait_until_healthy, write_connection
from scaleot_core.errors import EngineError
from scaleot_core.process_guard import REMOVE_OPTION, guarded
from scaleot_core.supervision import OFFLINE, installed_program

_LONGEST_DIRECTORY = 20
_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # its default gives way to every other process of the machine
}


@contextmanager
def running_superlink(variables: Mapping[str, str]) -> Iterator[SuperLink]:
    """Lends a SuperLink that keeps all its state in a folder of its own; nothing of it is left at the end.

    Anybody on this machine who reaches its loopback port can submit a run, as with ``flwr run``'s own local SuperLink.

    Raises:
        EngineError: it does not start.
    """
    port, folder = _free_port(), Path(tempfile.mkdtemp(prefix="scaleot-", dir=_short_directory()))
    environment = _environment(folder, variables)
    write_connection(folder, port, None)
    command = [installed_program("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--database", str(folder / "state.db")]
    with guarded(folder, REMOVE_OPTION), (folder / "superlink.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - no shell, and our own arguments
            command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        if not wait_until_healthy(port, None, lambda: process.poll() is not None):
            said = (folder / "superlink.log").read_text(errors="replace")
            raise EngineError(f"Flower's SuperLink did not start: {tail(said)}")
        yield SuperLink(environment, folder)


def _environment(folder: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment without proxies, offline, with Flower's and Ray's state in ``folder``."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    scripts = str(Path(sys.executable).parent)  # Flower starts its own programs by name
    path = os.pathsep.join((scripts, kept.get("PATH", os.defpath)))
    return {**kept, **OFFLINE, **_RAY, "PATH": path, "FLWR_HOME": str(folder), "RAY_TMPDIR": str(folder), **variables}


def _short_directory() -> str:
    """Where the folder goes: Ray's sockets lie 70 bytes below it, and a socket's path has at most 107."""
    usual = tempfile.gettempdir()
    return usual if len(usual) <= _LONGEST_DIRECTORY else "/tmp"  # noqa: S108 - mkdtemp makes it safe


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
