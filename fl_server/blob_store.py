"""Bytes by their SHA-256: adapters and updates of the rounds, and what was refused, apart from them.

A blob is written under a temporary name, synced, renamed, and its folder synced; only then does anything name it. So
what a row names is on the disk. What no row names is swept when the store is opened.
"""

import hashlib
import json
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scaleot_core.bundle.files import replace_file, sync_directory
from scaleot_core.errors import OutputError, StoreError

BLOBS_DIRECTORY, QUARANTINE_DIRECTORY = "blobs", "quarantine"
QUARANTINE_BYTES = 256 * 1024 * 1024
QUARANTINE_SECONDS = 30 * 86_400
_PRIVATE_FILE, _PRIVATE_DIRECTORY = 0o600, 0o700


class BlobStore:
    """The blobs of one run; one process writes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / BLOBS_DIRECTORY
        with _writing(self._directory):
            _make_private(self._directory)

    def put(self, blob: bytes) -> str:
        """Stores bytes and returns their SHA-256; they are on the disk by then.

        Raises:
            OutputError: the disk is full or cannot be written; nothing is there then.
        """
        digest = hashlib.sha256(blob).hexdigest()
        path = self._directory / digest
        if not path.exists():
            with _writing(path):
                replace_file(path, blob, mode=_PRIVATE_FILE)
        return digest

    def get(self, digest: str) -> bytes:
        """Returns stored bytes.

        Raises:
            StoreError: they are missing or damaged; nothing was made of them.
        """
        path = self._directory / digest
        try:
            blob = path.read_bytes()
        except OSError as error:
            raise StoreError(str(path), f"cannot be read: {error.strerror}") from error
        if hashlib.sha256(blob).hexdigest() != digest:
            raise StoreError(str(path), "its SHA-256 is another: the disk has damaged it")
        return blob

    def keep_only(self, digests: frozenset[str]) -> None:
        """Removes all other blobs, and what a crash left unfinished."""
        for path in self._directory.iterdir():
            if path.name not in digests:
                path.unlink()


@dataclass(frozen=True)
class Refused:
    """What is written beside a refused update."""

    client: str
    round_number: int
    code: str
    detail: str
    envelope: bytes
    """As it came, signed or not."""


class Quarantine:
    """Refused updates, for people to look at: no part of this program reads them again."""

    def __init__(
        self, directory: Path, *, max_bytes: int = QUARANTINE_BYTES, max_age_seconds: float = QUARANTINE_SECONDS
    ) -> None:
        self._directory = directory / QUARANTINE_DIRECTORY
        self._max_bytes, self._max_age_seconds = max_bytes, max_age_seconds

    def put(self, blob: bytes, refused: Refused) -> None:
        """Keeps a refused update and why it was refused, and lets the oldest go where room or time is over.

        What is larger than all the room is not kept; nor is anything where the disk is full: a refusal stands without.
        """
        name = hashlib.sha256(blob).hexdigest()
        note = json.dumps({**vars(refused), "envelope": b64encode(refused.envelope).decode()}, indent=2)
        if len(blob) > self._max_bytes:
            return
        try:
            _make_private(self._directory)
            replace_file(self._directory / f"{name}.blob", blob, mode=_PRIVATE_FILE)
            replace_file(self._directory / f"{name}.json", note.encode(), mode=_PRIVATE_FILE)
            self._let_go(time.time())
        except OSError:
            return

    def _let_go(self, now: float) -> None:
        kept = sorted(self._directory.glob("*.blob"), key=lambda path: path.stat().st_mtime, reverse=True)
        room = self._max_bytes
        for path in kept:
            room -= path.stat().st_size
            if room < 0 or now - path.stat().st_mtime > self._max_age_seconds:
                path.unlink()
                path.with_suffix(".json").unlink(missing_ok=True)


def _make_private(directory: Path) -> None:
    if not directory.exists():
        directory.mkdir(mode=_PRIVATE_DIRECTORY)
        sync_directory(directory.parent)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}. Nothing that was acknowledged is lost: make room "
            "and start the server again"
        ) from error
