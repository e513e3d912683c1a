"""A wheel of a few bytes, and the source that pins it, as the catalogue pins the real ones."""

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from scaleot_core.assets.catalogue import WheelSource

MEMBER, CONTENT = "tiny_asset/data.txt", b"a few bytes\n"


def tiny_source() -> WheelSource:
    """Returns a source whose conversion copies its only member in capitals; its SHA-256 is yet to be pinned."""
    return WheelSource(
        package="tiny-asset",
        version="1.0",
        sha256="",
        size_bytes=1_000,
        members={"data": (MEMBER, hashlib.sha256(CONTENT).hexdigest())},
        convert=write_capitals,
        revision=1,
        needed_bytes=1_000,
    )


def write_capitals(members: Mapping[str, Path], destination: Path) -> None:
    (destination / "capitals.txt").write_bytes(members["data"].read_bytes().upper())


def write_tiny_wheel(directory: Path, *, content: bytes = CONTENT) -> WheelSource:
    """Writes a wheel that pip accepts and returns the source that pins it."""
    source = tiny_source()
    information = "tiny_asset-1.0.dist-info"
    files = {
        MEMBER: content,
        "tiny_asset/never_unpacked.py": b"raise SystemExit('code of a wheel ran')\n",
        f"{information}/METADATA": b"Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\n"
        b"Requires-Python: <3\nRequires-Dist: a-package-that-is-nowhere\n",
        f"{information}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{information}/RECORD"] = "".join(f"{name},,\n" for name in files).encode()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / source.file_name
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return replace(source, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
