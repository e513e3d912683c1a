"""Every command that a text, a unit, a compose file or a manifest gives is one that ScaleOT takes."""

import re
import shlex
from collections.abc import Iterator

import pytest
import yaml

from tests.deploy.test_systemd import every_unit, settings_of
from tests.support.command_line import Command, commands_in_blocks, fault_of, scaleot_commands
from tests.support.sources import PACKAGES, ROOT

DEPLOY = ROOT / "deploy"
RUNBOOK = (DEPLOY / "README.md").read_text(encoding="utf-8")
TEXTS = sorted([*ROOT.glob("*.md"), *(path for name in (*PACKAGES, "deploy") for path in (ROOT / name).rglob("*.md"))])
PROGRAMS = {
    *("scaleot", "systemctl", "journalctl", "docker", "kubectl", "tar", "cp", "install", "useradd"),
    *("python3.11", "/opt/scaleot/bin/pip"),
}


def given_commands() -> Iterator[tuple[str, Command]]:
    for path in TEXTS:
        for words in commands_in_blocks(path.read_text(encoding="utf-8")):
            yield from ((path.relative_to(ROOT).as_posix(), command) for command in scaleot_commands(words))
    for text in re.findall(r"`(scaleot [^`]+)`", RUNBOOK):
        words = shlex.split(text)
        if len(words) > 2 or "HOME" in text:  # else it only names a verb
            yield from (("deploy/README.md", command) for command in scaleot_commands(words))
    for unit in every_unit():
        (start,) = settings_of(unit)["ExecStart"]
        words = shlex.split(start.replace("%i", unit.partition("@")[2].removesuffix(".service")))
        yield from ((unit, command) for command in scaleot_commands(words))
    for path in sorted([*DEPLOY.glob("compose/*.yaml"), *DEPLOY.glob("kubernetes/*.yaml")]):
        for words in _sequences(list(yaml.safe_load_all(path.read_text(encoding="utf-8")))):
            yield from ((path.name, command) for command in scaleot_commands(words))
        for comment in re.findall(r"^#.* (scaleot .*)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            yield from ((path.name, command) for command in scaleot_commands(shlex.split(comment)))
    for line in re.findall(r"^CMD (.*)$", (DEPLOY / "docker/Dockerfile").read_text(encoding="utf-8"), re.MULTILINE):
        yield from (("Dockerfile", command) for command in scaleot_commands(yaml.safe_load(line)))


def _sequences(value: object) -> Iterator[list[str]]:
    """Yields every list of words in a document."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _sequences(child)


GIVEN = sorted(set(given_commands()))


def test_commands_are_found_in_every_kind_of_file() -> None:
    places = {place.rpartition(".")[2] for place, _ in GIVEN}
    assert places == {"md", "service", "yaml", "Dockerfile"}
    assert len(GIVEN) > 30


@pytest.mark.parametrize(
    ("place", "command"), GIVEN, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_a_given_command_is_one_that_scaleot_takes(place: str, command: Command) -> None:
    assert fault_of(command) is None, place


@pytest.mark.parametrize(
    "command",
    [
        ("sreve", "owner"),
        ("org", "invite", "owner"),
        ("serve", "owner", "--insecure"),
        ("serve", "owner", "--part", "nginx"),
        ("org", "init", "home"),
        ("doctor", "one", "two"),
    ],
)
def test_a_command_that_scaleot_does_not_take_is_noticed(command: Command) -> None:
    assert fault_of(command) is not None


def test_every_block_calls_only_programs_that_an_operator_has() -> None:
    commands = list(commands_in_blocks(RUNBOOK))
    assert len(commands) > 30
    assert {words[0] for words in commands} <= PROGRAMS


def test_every_file_of_the_repository_that_a_command_names_is_there() -> None:
    words = {word for command in commands_in_blocks(RUNBOOK) for word in command}
    named = {word for word in words if re.match(r"(deploy/|[a-z-]+\.yaml$)", word)}
    assert named
    for name in named:
        place = ROOT / name if name.startswith("deploy/") else DEPLOY / "compose" / name
        assert place.exists(), name


def test_every_unit_that_a_command_names_is_there() -> None:
    units = {
        word if "." in word else f"{word}.service"
        for command in commands_in_blocks(RUNBOOK)
        if command[0] in ("systemctl", "journalctl")
        for word in command
        if word.startswith("scaleot-")
    }
    assert units
    assert [unit for unit in units if not (DEPLOY / "systemd" / unit).exists()] == []


@pytest.mark.parametrize(
    "step",
    [
        *("Install", "Set up the model owner", "Enrol an organisation", "Start", "Watch", "Plug in"),
        *("Revoke an organisation", "Rotate keys", "Back up and restore", "Upgrade", "When something is wrong"),
    ],
)
def test_the_runbook_has_every_step_an_operator_needs(step: str) -> None:
    section = RUNBOOK.partition(f"\n## {step}\n")[2].partition("\n## ")[0]
    assert "scaleot" in section
