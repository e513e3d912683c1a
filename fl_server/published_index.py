"""What a distribution service gives of a model owner's home: read again when it was published or granted anew."""

import threading
from collections.abc import Callable
from pathlib import Path

from fl_server.bundle_index import BundleIndex, ServedObject, read_manifest
from fl_server.grants import GRANTS_DIRECTORY, grant_files
from fl_server.repository_state import REPOSITORY_DIRECTORY
from scaleot_core.bundle.manifest import OBJECTS_DIRECTORY
from scaleot_core.bundle.repository import (
    METADATA_DIRECTORY,
    TARGETS_DIRECTORY,
    TIMESTAMP_FILE,
    is_repository_file,
    target_file,
)
from scaleot_core.errors import InputError, ScaleOTError


def published_index(home: Path) -> Callable[[], BundleIndex]:
    """Returns what gives, at every call, the index of what is published and granted at that moment.

    A repository that cannot be read later leaves the index as it was. Safe between threads. Raises ``InputError`` if
    nothing is published, and ``VerificationError`` for a target that is no manifest.
    """
    return _PublishedIndex(home).now


class _PublishedIndex:
    def __init__(self, home: Path) -> None:
        self._home, self._lock = home, threading.Lock()
        self._seen = _stamp(home)
        self._index = index_home(home)

    def now(self) -> BundleIndex:
        with self._lock:
            try:
                seen = _stamp(self._home)
                if seen != self._seen:
                    self._index, self._seen = index_home(self._home), seen
            except (ScaleOTError, OSError):  # in the middle of a change: what was read before is whole
                return self._index
            return self._index


def index_home(home: Path) -> BundleIndex:
    """Reads the repository's small files and every grant; raises like ``published_index``."""
    repository = home / REPOSITORY_DIRECTORY
    if not (repository / TIMESTAMP_FILE).exists():
        raise InputError(f"{repository} has nothing to serve: publish first, with scaleot publish {home}")
    small = [*(repository / METADATA_DIRECTORY).iterdir(), *(repository / TARGETS_DIRECTORY).rglob("*.json")]
    files = {name: path.read_bytes() for path in small if is_repository_file(name := _name(path, repository))}
    objects: dict[str, ServedObject] = {}
    for name, content in files.items():
        if name.startswith(f"{TARGETS_DIRECTORY}/"):
            for sealed in read_manifest(content)[1].objects:
                path = repository / OBJECTS_DIRECTORY / sealed.name
                objects[sealed.name] = ServedObject(path, sealed.size)
    return BundleIndex(objects, files, grant_files(home))


def _name(path: Path, repository: Path) -> str:
    return path.relative_to(repository).as_posix()


def _stamp(home: Path) -> tuple[tuple[int, int, int], ...]:
    """What changes whenever something is published, granted or pruned: each changes a name in these directories."""
    places = (
        home / REPOSITORY_DIRECTORY / METADATA_DIRECTORY,
        home / REPOSITORY_DIRECTORY / TIMESTAMP_FILE,
        (home / REPOSITORY_DIRECTORY / target_file("")).parent,
        home / GRANTS_DIRECTORY,
        *sorted((home / GRANTS_DIRECTORY).rglob("*")),
    )
    found = (place.stat() for place in places if place.exists())
    return tuple((status.st_ino, status.st_mtime_ns, status.st_size) for status in found)
