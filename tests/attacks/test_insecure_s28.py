"""S28: every way to start without TLS, with keys that others can read, or with a stranger's state is refused.

There is no insecure mode to ask for: ``scaleot keygen`` makes certificates in one command, for loopback too.
"""

import socket
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from fl_server.deployment import read_deployment
from scaleot_core.bundle.key_files import make_secret
from scaleot_core.cli import VERBS_GROUP, run
from scaleot_core.supervision import sole_process


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs the command line, which must end with 2, and returns what it says in one line."""
    assert run(arguments, entry_points(group=VERBS_GROUP)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def remove(name: str) -> Callable[[Path], None]:
    return lambda home: (home / name).unlink()


def open_to_others(name: str) -> Callable[[Path], None]:
    return lambda home: (home / name).chmod(0o644)


def with_open_secret(home: Path) -> None:
    make_secret(read_deployment(home).secret)
    (home / "superlink/secret").chmod(0o644)


OWNER_FAULTS = {
    "no-certificate": (remove("authority/server.pem"), "server.pem cannot be read"),
    "no-key": (remove("authority/server.key"), "server.key cannot be read"),
    "no-authority": (remove("authority/authority.pem"), "authority.pem cannot be read"),
    "open-key": (open_to_others("authority/server.key"), "run chmod 600"),
    "open-secret": (with_open_secret, "run chmod 600"),
    "no-settings": (remove("owner.toml"), "write a run file there, in a model owner's home"),
    "no-registry": (remove("organisations.jsonl"), "organisations.jsonl"),
}


@pytest.mark.parametrize("part", [(), ("--part", "superlink"), ("--part", "edge"), ("--part", "distribution")])
@pytest.mark.parametrize("fault", OWNER_FAULTS)
def test_s28_serve_refuses_to_start(
    owner: Path, fault: str, part: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    break_it, expected = OWNER_FAULTS[fault]
    break_it(owner)
    assert expected in refusal(capsys, "serve", str(owner), *part)


DATA_OWNER_FAULTS = {
    "no-certificate": (remove("tls.pem"), "tls.pem cannot be read"),
    "no-authority": (remove("authority.pem"), "authority.pem cannot be read"),
    "open-tls-key": (open_to_others("tls.key"), "run chmod 600"),
    "open-node-key": (open_to_others("node.key"), "run chmod 600"),
    "not-admitted": (remove("federation.json"), "org accept"),
}


@pytest.mark.parametrize("part", [(), ("--part", "node"), ("--part", "trainer")])
@pytest.mark.parametrize("fault", DATA_OWNER_FAULTS)
def test_s28_join_refuses_to_start(
    data_owner: Path, fault: str, part: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    break_it, expected = DATA_OWNER_FAULTS[fault]
    break_it(data_owner)
    assert expected in refusal(capsys, "join", str(data_owner), *part)


@pytest.mark.parametrize("verb", ["serve", "join"])
@pytest.mark.parametrize("flag", ["--insecure", "--no-auth", "--allow-runtime-dependency-installation"])
def test_s28_there_is_no_insecure_mode(owner: Path, verb: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, str(owner), flag], entry_points(group=VERBS_GROUP)) == 2
    assert "No such option" in capsys.readouterr().err


@pytest.mark.parametrize("section", ["fleet", "distribution", "superlink"])
def test_an_occupied_port_is_named_with_its_cure(owner: Path, section: str, capsys: pytest.CaptureFixture[str]) -> None:
    address = getattr(read_deployment(owner), section)
    with socket.socket() as taken:
        taken.bind((address.host, address.port))
        taken.listen()
        said = refusal(capsys, "serve", str(owner))
    assert f"{address} cannot be listened on: it is taken by another process" in said
    assert "choose another address in [serve]" in said


def test_a_state_in_use_by_another_process_is_refused(owner: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deployment = read_deployment(owner)
    with sole_process(deployment.state / "lock"):
        assert "is in use by another process" in refusal(capsys, "serve", str(owner))
