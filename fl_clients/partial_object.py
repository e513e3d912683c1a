"""An object that is still coming: a sparse file in which each block grows from its start, verified when it is whole.

No record is kept beside the file. After a crash, what a block has is what the file system says is no hole; it is
hashed again, the rest is asked for, and if the digest of the whole block then does not hold, the block is asked for
anew. So a torn write costs a block and never a wrong byte, and a file system without holes costs only time.
"""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fl_clients.patient_source import PatientSource
from scaleot_core.bundle.archive import read_blocks
from scaleot_core.bundle.distribution import MAX_PIECE_BYTES
from scaleot_core.bundle.files import sync_directory
from scaleot_core.bundle.manifest import BLOCK_BYTES, SealedObject
from scaleot_core.errors import VerificationError


def fetch_block(source: PatientSource, path: Path, sealed: SealedObject, index: int) -> int:
    """Completes one block of the partial file of an object and returns how many bytes were moved for it.

    Blocks of one file may be fetched by several threads at once; each holds one piece of at most 1 MiB. Raises
    ``VerificationError`` (``object.block``) if the source gives other bytes than the owner signed, ``FetchError``, and
    ``OSError`` if the file cannot be written.
    """
    start = index * BLOCK_BYTES
    stop = start + sealed.block_size(index)
    moved = 0
    with _open_to_write(path) as descriptor:
        kept = _kept_bytes(descriptor, start, stop)
        for held in (kept, 0) if kept else (0,):
            pieces = source.read_range(sealed.name, start + held, stop)
            digest, received = _complete(descriptor, pieces, start, start + held)
            moved += received
            if digest == sealed.blocks[index]:
                return moved
    raise VerificationError("object.block", f"object {sealed.name}, block {index}: not what the owner signed")


def place_object(partial: Path, place: Path, size_bytes: int) -> None:
    """Gives a partial file whose blocks all hold its final name once it is on the disk; raises ``OSError``."""
    with _open_to_write(partial) as descriptor:
        os.ftruncate(descriptor, size_bytes)  # whatever lay there before may have been longer
        os.fsync(descriptor)
    partial.replace(place)
    sync_directory(place.parent)


def is_object(directory: Path, sealed: SealedObject) -> bool:
    """Says whether an object lies whole in a directory, every block as it was signed."""
    try:
        for _ in read_blocks(directory, sealed):
            pass
    except VerificationError:
        return False
    return True


def held_bytes(path: Path) -> int:
    """Returns how many bytes of disk a partial file takes already."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _complete(descriptor: int, pieces: Iterator[bytes], since: int, position: int) -> tuple[str, int]:
    """Writes pieces from ``position`` on; returns the digest from ``since`` to their end, and how much came."""
    digest, start = hashlib.sha256(), position
    for held in range(since, start, MAX_PIECE_BYTES):
        digest.update(os.pread(descriptor, min(MAX_PIECE_BYTES, start - held), held))
    for piece in pieces:
        _write(descriptor, piece, position)
        digest.update(piece)
        position += len(piece)
    return digest.hexdigest(), position - start


@contextmanager
def _open_to_write(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _kept_bytes(descriptor: int, start: int, stop: int) -> int:
    """Returns how much of a block may be there from its start on: all of it, or whole pieces before the first hole."""
    try:
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), stop)
    except OSError as error:
        if error.errno != errno.ENXIO:  # which says that the file ends before the block
            raise
        return 0
    return stop - start if end == stop else (end - start) // MAX_PIECE_BYTES * MAX_PIECE_BYTES


def _write(descriptor: int, data: bytes, position: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, position)
        left, position = left[written:], position + written
