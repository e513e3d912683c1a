"""Files that are what they seem when they are read, and whole or absent when they are written."""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from scaleot_core.errors import InputError, OutputError, VerificationError


def open_regular_file(path: Path, *, flags: int = 0) -> BufferedReader:
    """Opens a file to read; raises ``OSError`` for a directory, a pipe or a device, and never waits for one.

    ``flags`` are those of ``os.open``, for example ``os.O_NOFOLLOW``.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_small_file(path: Path, limit_bytes: int) -> bytes:
    """Returns what a regular file holds, at most one byte more than the limit, which its parser refuses.

    Raises ``InputError`` if it cannot be read.
    """
    try:
        with open_regular_file(path) as file:
            return file.read(limit_bytes + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


@contextmanager
def given_file(path: Path, expected: str) -> Iterator[None]:
    """Names ``path``, and what was expected of it, in a ``VerificationError`` of the block."""
    try:
        yield
    except VerificationError as error:
        raise VerificationError(error.code, f"{path}: expected {expected}: {error.message}") from error


@contextmanager
def new_directory(destination: Path) -> Iterator[Path]:
    """Builds a directory beside ``destination`` and renames it there when the block ends well.

    Whatever ends the block otherwise, the unfinished directory is removed; after a power cut or ``kill -9`` it may
    stay as ``.<name>.<random>.partial``, and ``destination`` does not exist. The files in it must be synced by the
    block itself (``write_synced``, ``sync_directory``).

    Raises ``OutputError`` if ``destination`` exists or cannot be written.
    """
    if os.path.lexists(destination):
        raise OutputError(f"{destination} exists already, and is left as it is: choose another place")
    building = destination.with_name(f".{destination.name}.{secrets.token_hex(8)}.partial")
    try:
        building.mkdir()
        try:
            yield building
            sync_directory(building)
            building.rename(destination)
            sync_directory(destination.parent)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{destination} cannot be written: {error}") from error


def write_synced(path: Path, data: bytes, *, mode: int) -> None:
    """Writes a new file with at most the permissions ``mode`` and waits until it is on the disk."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes, *, mode: int) -> None:
    """Writes a file so that a reader, or a crash, sees the old content or the new one and nothing between.

    Raises ``OSError`` if it cannot be written; the old content is there then, and nothing else.
    """
    building = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        write_synced(building, data, mode=mode)
        building.replace(path)
        sync_directory(path.parent)  # the rename itself has to reach the disk
    finally:
        building.unlink(missing_ok=True)


def write_new_file(path: Path, data: bytes, *, mode: int) -> None:
    """Writes a file that must not exist yet: whole under its final name, on the disk, or not at all.

    Raises ``OutputError`` if ``path`` exists or cannot be written.
    """
    building = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        try:
            write_synced(building, data, mode=mode)
            path.hardlink_to(building)  # a link refuses an existing name; a rename would replace a key unasked
        finally:
            building.unlink(missing_ok=True)
        sync_directory(path.parent)
    except FileExistsError as error:
        raise OutputError(f"{path} exists already; it is not replaced") from error
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error


def sync_directory(directory: Path) -> None:
    """Waits until the names in a directory are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
