"""S30: the units are what systemd takes, are confined, and keep running what must run."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fl_clients import join
from fl_server import serve

DIRECTORY = Path(__file__).parent.parent.parent / "deploy" / "systemd"
SERVICES = sorted(path.name for path in DIRECTORY.glob("*.service"))
SCALEOT = Path(sys.executable).with_name("scaleot")
MOST_EXPOSURE = 15
"""Of 100, by ``systemd-analyze security``; a unit without any setting has 96."""
INSTANCES = {
    "scaleot-serve@.service": ("superlink", "distribution", "edge", "server-app", "rounds"),
    "scaleot-join@.service": ("agent", "node", "trainer"),
}
LOOPBACK_ALONE = {"scaleot-serve@superlink", "scaleot-serve@server-app", "scaleot-serve@rounds", "scaleot-join@trainer"}
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")

Settings = dict[str, list[str]]


def read(path: Path) -> dict[str, Settings]:
    """Reads a unit: each section's settings, each with all its values."""
    sections: dict[str, Settings] = {}
    section: Settings = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if title := re.fullmatch(r"\[(\w+)\]", line):
            section = sections.setdefault(title[1], {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return sections


def settings_of(unit: str) -> Settings:
    """Returns a service's settings with those of all its drop-ins, as systemd finds them."""
    stem = unit.removesuffix(".service")
    template = f"{stem.split('@')[0]}@" if "@" in stem else stem
    merged = dict(read(DIRECTORY / f"{template}.service")["Service"])
    for directory in ("scaleot-.service.d", f"{template}.service.d", f"{stem}.service.d"):
        for path in sorted((DIRECTORY / directory).glob("*.conf")):
            merged.update(read(path)["Service"])
    return merged


def every_unit() -> list[str]:
    return [
        unit
        for name in SERVICES
        for unit in ([name] if "@" not in name else [name.replace("@", f"@{i}") for i in INSTANCES[name]])
    ]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units as on a machine where ScaleOT is installed."""
    directory = tmp_path_factory.mktemp("units") / "system"
    shutil.copytree(DIRECTORY, directory)
    for path in directory.glob("*.service"):
        path.write_text(path.read_text().replace("/opt/scaleot/bin/scaleot", str(SCALEOT)))
    return directory


def analyze(directory: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["systemd-analyze", *arguments],
        env={"PATH": "/usr/bin:/bin", "SYSTEMD_UNIT_PATH": f"{directory}:", "SYSTEMD_PAGER": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@needs_systemd
def test_s30_systemd_takes_every_unit(installed: Path) -> None:
    units = [str(path) for path in sorted(installed.iterdir()) if path.is_file()]
    run = analyze(installed, "verify", "--man=no", *units)
    assert (run.returncode, run.stderr) == (0, "")


@needs_systemd
def test_s30_systemd_would_say_what_it_does_not_take(installed: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "scaleot-wrong.service"
    wrong.write_text((installed / "scaleot-serve.service").read_text().replace("TasksMax", "TaskMaximum"))
    assert "TaskMaximum" in analyze(installed, "verify", "--man=no", str(wrong)).stderr


@needs_systemd
@pytest.mark.parametrize("unit", every_unit())
def test_s30_a_unit_is_little_exposed(unit: str, installed: Path) -> None:
    path = installed / re.sub(r"@.*\.", "@.", unit)
    target = installed / unit
    if target != path:
        shutil.copy(path, target)
    run = analyze(installed, "security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSURE}", str(target))
    assert run.returncode == 0, run.stdout[-400:]


@pytest.mark.parametrize("unit", every_unit())
def test_s30_a_unit_is_confined(unit: str) -> None:
    settings = settings_of(unit)
    for key, value in {
        "User": "scaleot",
        "UMask": "0077",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
        "LimitCORE": "0",
        "StateDirectoryMode": "0700",
    }.items():
        assert settings[key] == [value], key
    assert "MemoryMax" in settings
    assert not re.search(r"secret|passw|token|key", " ".join(settings["Environment"]), re.IGNORECASE)
    assert "EnvironmentFile" not in settings


@pytest.mark.parametrize("unit", every_unit())
def test_s30_what_must_run_is_started_again_whatever_its_exit_code_was(unit: str) -> None:
    settings = settings_of(unit)
    if unit == "scaleot-plug-in.service":
        assert settings["Type"] == ["oneshot"]
        return
    ends_when_done = unit in ("scaleot-serve.service", "scaleot-serve@rounds.service")
    assert settings["Restart"] == (["on-failure"] if ends_when_done else ["always"])
    assert settings["RestartSec"] == ["5"]
    template = re.sub(r"@.*\.", "@.", unit)
    assert read(DIRECTORY / template)["Unit"]["StartLimitIntervalSec"] == ["0"], "a refused node tries for 61 s"


@pytest.mark.parametrize("unit", every_unit())
def test_s30_who_needs_no_network_has_none_but_this_machine(unit: str) -> None:
    settings = settings_of(unit)
    if unit.removesuffix(".service") in LOOPBACK_ALONE:
        assert (settings["IPAddressDeny"], settings["IPAddressAllow"]) == (["any"], ["localhost"])
    elif unit == "scaleot-plug-in.service":
        assert (settings["PrivateNetwork"], settings["IPAddressDeny"]) == (["yes"], ["any"])
    else:
        assert "IPAddressDeny" not in settings


@pytest.mark.parametrize("unit", every_unit())
def test_s30_t24_the_plug_in_alone_sees_the_full_model(unit: str) -> None:
    settings = settings_of(unit)
    if unit.startswith("scaleot-serve"):
        assert settings["InaccessiblePaths"] == ["-/srv/scaleot"]
    if unit == "scaleot-plug-in.service":
        assert settings["ReadOnlyPaths"] == ["-/srv/scaleot"]


def test_s30_the_instances_are_the_parts_that_serve_and_join_have() -> None:
    assert INSTANCES["scaleot-serve@.service"] == tuple(serve.PARTS)
    assert INSTANCES["scaleot-join@.service"] == tuple(join.PARTS)


@pytest.mark.parametrize("template", INSTANCES)
def test_s30_a_target_starts_every_process_of_its_side(template: str) -> None:
    wanted = read(DIRECTORY / template.replace("@.service", ".target"))["Unit"]["Wants"]
    expected = [template.replace("@", f"@{instance}") for instance in INSTANCES[template]]
    assert " ".join(wanted).split() == expected
