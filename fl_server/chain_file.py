"""An append-only record on the disk: lines that hold on to one another, and beside them the last that was acknowledged.

Any number of processes may read, and they see whole lines only; one at a time appends. A line is on the disk before
the head that names it, and the head before the append returns. So a line that the head names can never be missing,
and a damaged line behind it is a write that a crash interrupted, which nobody was told had happened: readers pass
over it, and the next append removes it.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

from filelock import FileLock, Timeout
from pydantic import Field, TypeAdapter, ValidationError

from scaleot_core.bundle.canonical import Document, Json, Sha256, canonical_json, write_document
from scaleot_core.bundle.files import open_regular_file, replace_file, write_synced
from scaleot_core.bundle.hash_chain import NO_LINE, describe_fault, read_line, write_line
from scaleot_core.errors import BrokenLineError, ChainError, InputError, OutputError

MAX_LINE_BYTES = 64 * 1024
LOCK_SECONDS = 30.0
_PRIVATE_FILE = 0o600
_EntryType = TypeVar("_EntryType", bound=Document)


@dataclass(frozen=True)
class ChainHead:
    """The last line of a record; whoever knows it knows all lines up to it."""

    number: int
    """From 1; 0 where there is no line."""
    sha256: str


class _HeadFile(Document):
    format: Literal["scaleot.chain-head/1"] = "scaleot.chain-head/1"
    number: Annotated[int, Field(ge=1)]
    sha256: Sha256


@dataclass(frozen=True)
class ChainLine(Generic[_EntryType]):
    """A verified line."""

    number: int
    sha256: str
    entry: _EntryType


class ChainFile(Generic[_EntryType]):
    """The lines of one record as this process has read them; safe between threads.

    ``kind`` names the record in errors, and ``entries`` is the schema of what its lines say. A copy may come without
    its head; then it has to end with a whole line. Once a line was at fault, every later call says so again.
    """

    def __init__(self, path: Path, *, kind: str, entries: TypeAdapter[_EntryType], is_copy: bool = False) -> None:
        self.source = f"{kind} {path}"
        self._path, self._entries, self._is_copy = path, entries, is_copy
        self._hashes: list[str] = []
        self._size_bytes = 0
        self._fault: ChainError | None = None
        self.guard = threading.RLock()
        self._lock = FileLock(path.with_suffix(".lock"), timeout=LOCK_SECONDS, thread_local=False)

    @property
    def head(self) -> ChainHead:
        """The last line that was read or appended here."""
        return ChainHead(len(self._hashes), self._hashes[-1] if self._hashes else NO_LINE)

    def digest_of(self, number: int) -> str | None:
        """Returns the SHA-256 of a line that was read, or ``None`` where there is no such line."""
        return self._hashes[number - 1] if 0 < number <= len(self._hashes) else None

    def read(self) -> list[ChainLine[_EntryType]]:
        """Returns the lines that were added since the last call.

        Raises:
            InputError: there is no such record, or it cannot be read now.
            ChainError: a line is damaged, changed, moved or missing.
        """
        with self.guard:
            if self._fault is not None:
                raise self._fault
            try:
                return self._read()
            except ChainError as error:
                self._fault = error
                raise

    def fail(self, number: int, fault: str) -> ChainError:
        """Returns the error of a line whose entry makes no sense after those before it; the record stays at fault."""
        self._fault = ChainError(self.source, fault, line=number)
        return self._fault

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keeps all other writers out; inside, ``read`` what they added and then ``append``.

        Raises:
            InputError: another process has been writing for 30 seconds.
            OutputError: the lock cannot be taken.
        """
        with self.guard:
            try:
                self._lock.acquire()
            except Timeout as error:
                raise InputError(f"{self.source} is being written by another process; try again") from error
            except OSError as error:
                raise self._not_written(error) from error
            try:
                yield
            finally:
                self._lock.release()

    def append(self, entry: _EntryType) -> ChainHead:
        """Adds a line, within ``writing`` and after ``read``; it is on the disk when this returns.

        Raises:
            ValueError: the line would be longer than 64 KiB.
            OutputError: it cannot be written; whether the line is there is found out by reading again.
        """
        head = self.head
        line = write_line(entry.model_dump(mode="json"), number=head.number + 1, previous=head.sha256)
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"{self.source}: expected a line of at most {MAX_LINE_BYTES} bytes, got {len(line)}")
        _, digest = read_line(line[:-1], number=head.number + 1, previous=head.sha256)
        try:
            _write_at(self._path, line, self._size_bytes)
            write_head(self._path, ChainHead(head.number + 1, digest))
        except OSError as error:
            raise self._not_written(error) from error
        self._hashes.append(digest)
        self._size_bytes += len(line)
        return self.head

    def _read(self) -> list[ChainLine[_EntryType]]:
        acknowledged = self._read_head()  # first: a writer may add lines while we read
        content = self._read_content()
        *lines, rest = content.split(b"\n")
        added: list[ChainLine[_EntryType]] = []
        for position, line in enumerate(lines, 1):
            number = len(self._hashes) + 1
            try:
                value, digest = read_line(line, number=number, previous=self.head.sha256)
            except BrokenLineError as error:
                if acknowledged and acknowledged.number < number and position == len(lines) and not rest:
                    break  # after a power cut the last line may lack some blocks
                raise ChainError(self.source, str(error), line=number) from error
            entry = self._parse(value, number)
            self._hashes.append(digest)
            self._size_bytes += len(line) + 1
            added.append(ChainLine(number, digest, entry))
        if acknowledged:
            self._check_has(acknowledged)
        elif rest:
            raise ChainError(self.source, "it has no end: the file was cut off", line=len(self._hashes) + 1)
        return added

    def _parse(self, value: Json, number: int) -> _EntryType:
        try:
            return self._entries.validate_json(canonical_json(value))
        except ValidationError as error:
            raise ChainError(self.source, describe_fault(error, inside="entry"), line=number) from error

    def _read_head(self) -> _HeadFile | None:
        path = head_path(self._path)
        if not os.path.lexists(self._path):
            raise InputError(f"there is no {self.source}; a home has one from `scaleot keygen` on")
        if self._is_copy and not os.path.lexists(path):
            return None
        try:
            return _HeadFile.model_validate_json(path.read_bytes())
        except OSError as error:
            raise InputError(
                f"the head {path} of the {self.source} cannot be read: {error.strerror or error}"
            ) from error
        except ValidationError as error:
            raise ChainError(self.source, f"its head {path} is damaged: put back a copy of both files") from error

    def _read_content(self) -> bytes:
        """Returns what stands behind the lines that were read before."""
        try:
            with open_regular_file(self._path, flags=os.O_NOFOLLOW) as file:
                if os.fstat(file.fileno()).st_size < self._size_bytes:
                    raise ChainError(self.source, "it became shorter while it was in use: lines were removed")
                file.seek(self._size_bytes)
                return file.read()
        except OSError as error:
            raise InputError(f"the {self.source} cannot be read: {error.strerror or error}") from error

    def _check_has(self, acknowledged: _HeadFile) -> None:
        digest = self.digest_of(acknowledged.number)
        if digest is None:
            raise ChainError(
                self.source,
                f"it is missing: the head names line {acknowledged.number}. The file was cut off or is an older copy: "
                "put back the newest one",
                line=len(self._hashes) + 1,
            )
        if digest != acknowledged.sha256:
            fault = f"the head names it as {acknowledged.sha256}, got {digest}: it is not the same record"
            raise ChainError(self.source, fault, line=acknowledged.number)

    def _not_written(self, error: OSError) -> OutputError:
        return OutputError(f"{self.source} cannot be written: {error.strerror or error}; make room, then try again")


def create_chain(path: Path, first: Document) -> None:
    """Writes a new record with one line; the caller syncs the directory. Raises ``OSError`` if it cannot."""
    line = write_line(first.model_dump(mode="json"), number=1, previous=NO_LINE)
    _, digest = read_line(line[:-1], number=1, previous=NO_LINE)
    write_synced(path, line, mode=_PRIVATE_FILE)
    write_head(path, ChainHead(1, digest))


def head_path(path: Path) -> Path:
    """Returns where the head of a record lies."""
    return path.with_suffix(".head.json")


def write_head(path: Path, head: ChainHead) -> None:
    """Writes the head of a record, in one step."""
    document = _HeadFile(number=head.number, sha256=head.sha256)
    replace_file(head_path(path), write_document(document) + b"\n", mode=_PRIVATE_FILE)


def _write_at(path: Path, line: bytes, size_bytes: int) -> None:
    """Writes a line behind the first ``size_bytes`` bytes, in place of what an interrupted write left there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.ftruncate(descriptor, size_bytes)
        os.lseek(descriptor, 0, os.SEEK_END)
        while line:
            line = line[os.write(descriptor, line) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
