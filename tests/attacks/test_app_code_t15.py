"""T15: code that a run brings is installed and run by neither side, whoever sent it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_files

from fl_server.deployment import Deployment, read_deployment
from fl_server.superlink import SuperLink, wait_until_healthy, write_connection
from scaleot_core.flower_app import APP, APP_FILE
from scaleot_core.supervision import child_environment, part_home
from tests.support.deployments import build_deployment
from tests.support.running import wait_for

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


def hostile_code(mark: Path) -> str:
    app = "from flwr.serverapp import ServerApp\napp = ServerApp()\n"
    return f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n{app}"


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("is_hostile", [True, False])
def test_t15_the_installer_of_either_side_takes_our_app_alone(side: str, is_hostile: bool, tmp_path: Path) -> None:
    mark, bundle = tmp_path / "ran", tmp_path / "app.fab"
    files = {APP_FILE: APP.encode()}
    if is_hostile:
        files = {APP_FILE: HOSTILE_APP.encode(), "evil.py": hostile_code(mark).encode()}
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
    assert not mark.exists()


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
def test_t15_who_reaches_the_control_port_cannot_have_code_run_there(server: Deployment, tmp_path: Path) -> None:
    mark, app, folder = tmp_path / "ran", tmp_path / "app", part_home(server.state, "rounds")
    app.mkdir()
    (app / APP_FILE).write_text(HOSTILE_APP)
    (app / "evil.py").write_text(hostile_code(mark))
    write_connection(folder, server.superlink.port, server.tls.authority)
    superlink = SuperLink(child_environment(folder), folder)
    run_id = superlink.submit(app)
    wait_for(lambda: superlink.status(run_id).startswith("finished"), 120, "the end of the hostile run")
    assert superlink.status(run_id).startswith("finished:failed")
    assert "app.unknown" in superlink.log(run_id)
    assert not mark.exists()
    assert not list(server.state.rglob("evil.py"))
