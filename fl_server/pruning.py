"""What ``scaleot publish --keep N`` removes: old versions of the emulator, in an order that a crash cannot harm.

Clients are led to the newest version alone; who is in the middle of fetching an older one needs its objects, so some
stay. In a repository manifests go first, so that no manifest that lies there lacks an object, and objects that no
manifest names go then: also those that a killed process left. What is sealed and not published yet stays, and so does
the sealed version that the home's run is about, which ``scaleot plug-in`` opens at its end. Metadata of TUF stays: it
is small, and clients walk along the roots.
"""

from pathlib import Path

from fl_server.bundle_index import read_manifest
from fl_server.owner import has_run, read_settings
from fl_server.repository import sole_publisher
from fl_server.repository_files import remove_object_files
from fl_server.repository_state import REPOSITORY_DIRECTORY, published_version
from fl_server.sealed_versions import read_sealed, remove_sealed, sealed_numbers
from scaleot_core.bundle.files import sync_directory
from scaleot_core.bundle.manifest import OBJECTS_DIRECTORY, OuterManifest
from scaleot_core.bundle.repository import TARGETS_DIRECTORY
from scaleot_core.errors import InputError, OutputError


def prune(home: Path, keep: int) -> tuple[int, ...]:
    """Removes what is older than the ``keep`` newest published versions, and returns the versions that are gone.

    ``keep`` is at least 1. Killed at any moment, it leaves a repository that clients accept, and the next one finishes.

    Raises:
        InputError: nothing is published, or a file of the home cannot be read.
        VerificationError: a manifest of the repository is none.
        OutputError: the home cannot be written.
    """
    repository = home / REPOSITORY_DIRECTORY
    with sole_publisher(home):
        newest = published_version(home)
        manifests = _manifests(repository)
        published = {newest, *(one.version for one in manifests.values() if one.version <= newest)}
        oldest = min(sorted(published)[-keep:])
        old = {path: one.version for path, one in manifests.items() if one.version < oldest}
        try:
            _unlink(list(old))
            kept = {sealed.name for path, one in manifests.items() if path not in old for sealed in one.objects}
            remove_object_files(repository, kept)
            removed = [number for number in sealed_numbers(home) if number < oldest and not _is_run_about(home, number)]
            remove_sealed(home, removed)
        except OSError as error:
            raise OutputError(f"{home}: old versions cannot be removed: {error.strerror or error}") from error
    return tuple(sorted({*old.values(), *removed}))


def prune_copy(repository: Path, copy: Path) -> None:
    """Removes from a copy of a repository the manifests and objects that the repository has no more.

    To be called when the copy says what the repository says. Raises ``OutputError``.
    """
    kept = {path.relative_to(repository) for path in _manifest_files(repository)}
    try:
        _unlink([path for path in _manifest_files(copy) if path.relative_to(copy) not in kept])
        remove_object_files(copy, {path.name for path in (repository / OBJECTS_DIRECTORY).iterdir()})
    except OSError as error:
        raise OutputError(f"{copy}: old versions cannot be removed: {error.strerror or error}") from error


def _manifests(repository: Path) -> dict[Path, OuterManifest]:
    try:
        return {path: read_manifest(path.read_bytes())[1] for path in _manifest_files(repository)}
    except OSError as error:
        raise InputError(f"{repository}: a manifest cannot be read: {error.strerror or error}") from error


def _manifest_files(repository: Path) -> list[Path]:
    return sorted((repository / TARGETS_DIRECTORY).rglob("*.manifest.json"))


def _unlink(manifests: list[Path]) -> None:
    """Removes manifests, and returns when that is on the disk."""
    for path in manifests:
        path.unlink()
    for directory in {path.parent for path in manifests}:
        sync_directory(directory)


def _is_run_about(home: Path, number: int) -> bool:
    run = home / "run"
    return has_run(run) and read_settings(run).bundle_digest == read_sealed(home, number).record.digest
