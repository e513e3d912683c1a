"""Wheels of a few bytes, and the source that pins them, as the catalogue pins the real ones."""

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from scaleot_core.assets.catalogue import Wheel, WheelSource

CONTENT = b"a few bytes\n"
MEMBER = "tiny_asset/data.txt"
PARTS = (b"first, ", b"second, ", b"third\n")
"""What the members of ``write_tiny_parts`` hold; no order but this one gives the joined file."""


def tiny_source(package: str = "tiny-asset", content: bytes = CONTENT) -> WheelSource:
    """Returns a source whose conversion copies its only member in capitals; its SHA-256 is yet to be pinned."""
    member = f"{package.replace('-', '_')}/data.txt"
    members = {"data": (member, hashlib.sha256(content).hexdigest())}
    wheel = Wheel(package, "1.0", sha256="", size_bytes=1_000, members=members)
    return WheelSource("tiny-asset", (wheel,), convert=write_capitals, revision=1, needed_bytes=1_000)


def write_capitals(members: Mapping[str, Path], destination: Path) -> None:
    (destination / "capitals.txt").write_bytes(members["data"].read_bytes().upper())


def write_tiny_wheel(directory: Path, *, content: bytes = CONTENT) -> WheelSource:
    """Writes a wheel that pip accepts and returns the source that pins it; another ``content`` is not its member's."""
    source = tiny_source()
    return replace(source, wheels=(_write(source.wheels[0], directory, content),))


def write_tiny_parts(directory: Path) -> WheelSource:
    """Writes three wheels, each with a part of one file, and returns the source that pins them."""
    wheels = []
    for number, content in enumerate(PARTS, 1):
        (wheel,) = tiny_source(f"tiny-part{number}", content).wheels
        wheels.append(_write(wheel, directory, content))
    return replace(tiny_source(), name="tiny-parts", wheels=tuple(wheels))


def with_wheel(source: WheelSource, **changes: object) -> WheelSource:
    """Returns ``source`` with changed values in its first wheel."""
    first, *others = source.wheels
    return replace(source, wheels=(replace(first, **changes), *others))  # type: ignore[arg-type]


def _write(wheel: Wheel, directory: Path, content: bytes) -> Wheel:
    (member, _) = wheel.members["data"]
    package = member.partition("/")[0]
    information = f"{package}-1.0.dist-info"
    files = {
        member: content,
        f"{package}/never_unpacked.py": b"raise SystemExit('code of a wheel ran')\n",
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {wheel.package}\nVersion: 1.0\n".encode()
        + b"Requires-Python: <3\nRequires-Dist: a-package-that-is-nowhere\n",
        f"{information}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{information}/RECORD"] = "".join(f"{name},,\n" for name in files).encode()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / wheel.file_name
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return replace(wheel, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
