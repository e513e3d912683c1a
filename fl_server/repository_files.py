"""How files get into a repository: whole under their final name and on the disk, or not at all."""

import errno
import os
import re
import shutil
from collections.abc import Set
from pathlib import Path
from secrets import token_hex

from scaleot_core.bundle.files import replace_file, sync_directory
from scaleot_core.bundle.manifest import OBJECTS_DIRECTORY
from scaleot_core.bundle.repository import METADATA_DIRECTORY, TARGETS_DIRECTORY, TIMESTAMP_FILE, Role
from scaleot_core.errors import OutputError

_PUBLIC = 0o644
_OBJECT_FILE = re.compile(r"[0-9a-f]{64}|\.[0-9a-f]{64}\.[0-9a-f]{16}\.partial")
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS})


def place_file(path: Path, data: bytes) -> None:
    """Writes a small file, or replaces it at once; raises ``OutputError`` with the old content still there."""
    try:
        make_directory(path.parent)
        replace_file(path, data, mode=_PUBLIC)
    except OSError as error:
        raise _unwritable(path, error) from error


def place_object(source: Path, path: Path) -> None:
    """Puts a ciphertext in its place: as a second name of the same file where the disk allows it, or as a copy.

    What lies there with the right size stays. Raises ``OutputError``.
    """
    building = path.with_name(f".{path.name}.{token_hex(8)}.partial")
    try:
        if path.is_file() and path.stat().st_size == source.stat().st_size:
            return
        make_directory(path.parent)
        try:
            _link_or_copy(source, building)
            building.replace(path)
            sync_directory(path.parent)
        finally:
            building.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def copy_repository(repository: Path, destination: Path) -> None:
    """Brings a copy, for any static store to serve, to what the repository says now.

    Whatever it is killed at, clients of the copy find what it said before or what it says now: numbers and digests come
    first, then the timestamp that leads to them, then roots. Raises ``OutputError``, also where ``destination`` holds
    something else than such a copy.
    """
    held = {path.name for path in destination.iterdir()} if destination.is_dir() else set()
    if held and not held & {OBJECTS_DIRECTORY, METADATA_DIRECTORY, TARGETS_DIRECTORY}:
        raise OutputError(f"{destination} holds something else than a copy of a repository: give an empty directory")
    for path in sorted((repository / OBJECTS_DIRECTORY).glob("[0-9a-f]*")):
        place_object(path, destination / OBJECTS_DIRECTORY / path.name)
    metadata = sorted((repository / METADATA_DIRECTORY).glob("[0-9]*.json"))
    roots = [path for path in metadata if path.name.endswith(f".{Role.ROOT}.json")]
    small = [
        *sorted((repository / TARGETS_DIRECTORY).rglob("*.json")),
        *(path for path in metadata if path not in roots),
    ]
    for path in (*small, repository / TIMESTAMP_FILE, *roots):
        place, data = destination / path.relative_to(repository), path.read_bytes()
        if not place.exists() or place.read_bytes() != data:
            place_file(place, data)


def remove_object_files(repository: Path, kept: Set[str]) -> None:
    """Removes every object of a repository but those of the names ``kept``, and what was left of an unfinished one.

    Whatever else lies there is nobody's business. Raises ``OSError``.
    """
    objects = repository / OBJECTS_DIRECTORY
    for path in objects.iterdir():
        if _OBJECT_FILE.fullmatch(path.name) and path.name not in kept:
            path.unlink()
    sync_directory(objects)


def make_directory(directory: Path) -> None:
    """Makes a directory and those above it, each on the disk; raises ``OSError``."""
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def _link_or_copy(source: Path, building: Path) -> None:
    try:
        building.hardlink_to(source)  # sealed bundles are never changed, so both names may have one content
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        with source.open("rb") as opened, building.open("xb") as sink:
            shutil.copyfileobj(opened, sink, 1 << 20)
            sink.flush()
            os.fsync(sink.fileno())


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be written: {error.strerror or error}. What was published before still is: make room, and "
        "publish again"
    )
