"""Fetches a sealed bundle into the data owner's directory: resumable, by block, verified before it has a name.

::

    DIRECTORY/<bundle digest>.lock                  held by the one process that fetches it
    DIRECTORY/<bundle digest>/objects/<name>        whole, verified objects and nothing else
    DIRECTORY/<bundle digest>/partial/<name>        those that are still coming
    DIRECTORY/<bundle digest>/manifest.dsse.json    written last: where it is, every object was there

The source is trusted with nothing. The manifest's signatures hold before it comes here (``repository``), every block's
digest before it counts, all of an object's before it is renamed into place. Nothing is decrypted: ``verify_bundle`` and
``open_bundle`` do the rest, and check again what lies on the disk.
"""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage, rmtree

from filelock import FileLock, Timeout

from fl_clients.partial_object import fetch_block, held_bytes, is_object, place_object
from fl_clients.patient_source import PatientSource
from scaleot_core.bundle.files import replace_file, sync_directory
from scaleot_core.bundle.manifest import MANIFEST_FILE, OBJECTS_DIRECTORY, SealedObject
from scaleot_core.bundle.verify import SignedManifest
from scaleot_core.errors import InputError, OutputError
from scaleot_core.progress import Reporter

PARTIAL_DIRECTORY = "partial"
DEFAULT_STREAMS = 4
SPARE_BYTES = 64 * 1024 * 1024
"""Disk space that has to stay free beside the bundle."""

_MEGABYTE = 1_000_000


@dataclass(frozen=True)
class FetchedBundle:
    """A bundle that lies whole in ``path``, still encrypted, to be read by ``read_bundle`` and ``verify_bundle``.

    ``version`` is the signed one: who keeps the highest seen compares it, since a source may serve an old bundle as
    its newest. Of the objects' ``size_bytes``, ``moved_bytes`` came from the source this time; a block that had to be
    fetched twice counts twice.
    """

    path: Path
    digest: str
    version: int
    size_bytes: int
    moved_bytes: int


def fetch_bundle(
    source: PatientSource,
    directory: Path,
    envelope: bytes,
    signed: SignedManifest,
    *,
    reporter: Reporter,
    streams: int = DEFAULT_STREAMS,
) -> FetchedBundle:
    """Fetches the bundle of a manifest that is at hand and ``signed``, verified, and returns where it lies.

    ``envelope`` is the manifest's bytes. It goes on where an earlier fetch of the bundle ended, however that was. What
    lies there whole is hashed and not asked for again, and damaged blocks of it are replaced. Memory does not depend on
    the bundle's size: a few MiB for each of the ``streams``.

    Raises:
        VerificationError: an object is not what the owner signed.
        FetchError: the source refuses, or gives nothing within its deadline.
        OutputError: the directory cannot be written or has not enough room.
        InputError: another process is fetching this bundle.
    """
    place = directory / signed.digest
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(place):
            moved_bytes = _fetch_objects(source, place, signed, streams, reporter)
            replace_file(place / MANIFEST_FILE, envelope, mode=0o666)
            sync_directory(directory)
    except OSError as error:
        raise OutputError(
            f"{place} cannot be written: {error.strerror or error}. What came is kept: make room, and fetch again"
        ) from error
    size_bytes = sum(sealed.size for sealed in signed.manifest.objects)
    return FetchedBundle(place, signed.digest, signed.manifest.version, size_bytes, moved_bytes)


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    lock = FileLock(place.with_name(f"{place.name}.lock"), timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(f"{place} is being fetched by another process. Wait until it ends") from error
    try:
        yield
    finally:
        lock.release()


def _fetch_objects(source: PatientSource, place: Path, signed: SignedManifest, streams: int, reporter: Reporter) -> int:
    """Brings every object that is missing or damaged into place and returns how many bytes were moved."""
    objects, partial = place / OBJECTS_DIRECTORY, place / PARTIAL_DIRECTORY
    for made in (objects, partial):
        made.mkdir(parents=True, exist_ok=True)
    listed = {sealed.name: sealed for sealed in signed.manifest.objects}  # each once, should one be listed twice
    missing = [sealed for sealed in listed.values() if not is_object(objects, sealed)]
    for sealed in missing:
        if (objects / sealed.name).exists():  # damaged: most of its blocks still hold
            (objects / sealed.name).replace(partial / sealed.name)
    _check_room(place, missing)
    moved_bytes = _fetch_blocks(source, place, missing, streams, reporter)
    rmtree(partial)
    return moved_bytes


def _check_room(place: Path, missing: list[SealedObject]) -> None:
    held = (held_bytes(place / PARTIAL_DIRECTORY / sealed.name) for sealed in missing)
    needed = sum(max(sealed.size - there, 0) for sealed, there in zip(missing, held, strict=True))
    free = disk_usage(place).free
    if needed and free < needed + SPARE_BYTES:
        raise OutputError(
            f"{place}: the rest of a bundle needs {needed // _MEGABYTE} MB and {SPARE_BYTES // _MEGABYTE} MB to spare, "
            f"{free // _MEGABYTE} MB are free. What came before is kept: make room, and fetch again"
        )


def _fetch_blocks(
    source: PatientSource, place: Path, missing: list[SealedObject], streams: int, reporter: Reporter
) -> int:
    """Fetches blocks of all objects in parallel and places each object when its last block is there."""
    blocks_left = Counter({sealed.name: len(sealed.blocks) for sealed in missing})
    size_bytes = sum(sealed.size for sealed in missing)
    moved_bytes = done_bytes = 0
    with (
        reporter.stage("fetch bundle (MB)", steps=size_bytes // _MEGABYTE) as stage,
        ThreadPoolExecutor(streams, thread_name_prefix="fetch") as pool,
    ):
        jobs = {
            pool.submit(fetch_block, source, place / PARTIAL_DIRECTORY / sealed.name, sealed, index): (
                sealed,
                index,
            )
            for sealed in missing
            for index in range(len(sealed.blocks))
        }
        try:
            for job in as_completed(jobs):
                sealed, index = jobs[job]
                moved_bytes += job.result()
                before, done_bytes = done_bytes, done_bytes + sealed.block_size(index)
                stage.advance(done_bytes // _MEGABYTE - before // _MEGABYTE)
                blocks_left[sealed.name] -= 1
                if not blocks_left[sealed.name]:
                    _place(place, sealed)
        except BaseException:  # the interruption of a person too: the threads must not go on behind it
            source.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return moved_bytes


def _place(place: Path, sealed: SealedObject) -> None:
    place_object(place / PARTIAL_DIRECTORY / sealed.name, place / OBJECTS_DIRECTORY / sealed.name, sealed.size)
