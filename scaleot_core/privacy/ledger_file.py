"""A ledger on the disk: its lines, its head, the released bytes, and the lock that lets one process write.

What a caller was told has happened is on the disk: a line is written and synced, then its hash is written to
``head.json`` and to the mirror, and only then the call returns. So a line that ``head.json`` names can never be
missing, and what stands behind it was never acknowledged. ``LEDGER.md`` says what each crash leaves.
"""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from scaleot_core.bundle.files import new_directory, replace_file, sync_directory, write_synced
from scaleot_core.errors import InputError, LedgerError, OutputError
from scaleot_core.privacy.ledger_content import first_other_line, read_lines
from scaleot_core.privacy.ledger_head import HEAD_FILE, check_head, encode_head, mirrored_head, read_head
from scaleot_core.privacy.ledger_lines import (
    Committed,
    Entry,
    LedgerChain,
    LedgerTerms,
    Opened,
    Recovered,
)

LINES_FILE = "ledger.jsonl"
LOCK_FILE = "ledger.lock"
RELEASES_DIRECTORY = "releases"
_PRIVATE_FILE, _PRIVATE_DIRECTORY = 0o600, 0o700


def create_ledger(
    directory: Path, terms: LedgerTerms, *, budget_epsilon: float, now: datetime, mirror: Path | None = None
) -> None:
    """Makes a new ledger, whole or not at all.

    ``directory`` must not exist and its parent must: a directory made on the way could be lost in a power cut. With
    ``mirror``, a directory of the data owner elsewhere, the ledger's head is kept there, too.

    Raises:
        OutputError: a directory exists already, has no parent, or cannot be written.
        InputError: the budget is no positive number.
        LedgerError: the mirror knows a ledger of this data set already; a new one would forget what it spent.
    """
    try:
        opened = Opened(ledger=secrets.token_hex(16), terms=terms, budget_epsilon=budget_epsilon, time=now)
    except ValidationError as error:
        raise InputError(f"a ledger's budget: expected an epsilon above 0, got {budget_epsilon}") from error
    if mirror is not None and not mirror.is_dir():
        raise OutputError(f"the ledger's mirror {mirror} is no directory: make it first, on another disk if you can")
    mirrored = mirrored_head(mirror, terms)
    for path in mirrored:
        if os.path.lexists(path):
            raise LedgerError(
                str(directory),
                f"a ledger of this data set exists already: {path} holds its head. Use that ledger or its newest copy; "
                "remove the mirrored head only if the ledger is lost for good",
            )
    if os.path.lexists(directory):
        raise OutputError(f"there is a ledger at {directory} already: a new one would forget what was spent")
    chain = LedgerChain(str(directory))
    line = chain.write_line(opened)
    chain.read_line(line[:-1])
    with new_directory(directory) as building:
        building.chmod(_PRIVATE_DIRECTORY)
        write_synced(building / LINES_FILE, line, mode=_PRIVATE_FILE)
        write_synced(building / HEAD_FILE, encode_head(chain), mode=_PRIVATE_FILE)
        (building / RELEASES_DIRECTORY).mkdir(mode=_PRIVATE_DIRECTORY)
        sync_directory(building / RELEASES_DIRECTORY)
    with _writing(directory):
        for path in mirrored:
            replace_file(path, encode_head(chain), mode=_PRIVATE_FILE)


def read_chain(directory: Path) -> LedgerChain:
    """Returns the verified lines of a ledger, without the lock and without changing anything.

    A line that another process is just writing is not among them.

    Raises:
        InputError: there is no ledger.
        LedgerError: a line is damaged, changed, moved or missing; it names the line.
    """
    return _read(directory)[0]


class LedgerFile:
    """A ledger that this process alone may write; ``open_ledger_file`` makes it. For one thread at a time."""

    def __init__(self, directory: Path, chain: LedgerChain, heads: tuple[Path, ...], descriptor: int) -> None:
        self.chain = chain
        self._directory = directory
        self._heads = heads
        self._descriptor = descriptor
        self._size_bytes = os.fstat(descriptor).st_size
        self._is_usable = True

    def append(self, entry: Entry) -> int:
        """Adds a line and returns its number; it is on the disk by then, and so is the head that names it.

        Whatever stops this before its end leaves the ledger closed: the line may be on the disk or not, which opening
        it again finds out.

        Raises:
            LedgerError: the entry cannot come next, the file was changed by another hand, or an earlier write failed.
            OutputError: the disk is full or cannot be written.
        """
        line = self.chain.write_line(entry)
        self._check_untouched()
        self._is_usable = False
        with _writing(self._directory):
            _write_all(self._descriptor, line)
            os.fsync(self._descriptor)
        self.chain.read_line(line[:-1])
        self._size_bytes += len(line)
        self.write_heads()
        self._is_usable = True
        return len(self.chain.entries)

    def store_release(self, release: bytes) -> str:
        """Stores bytes under their SHA-256, which is returned; they are on the disk by then.

        Raises:
            LedgerError: an earlier write failed.
            OutputError: the disk is full or cannot be written.
        """
        self._check_untouched()
        digest = hashlib.sha256(release).hexdigest()
        with _writing(self._directory):
            replace_file(self._directory / RELEASES_DIRECTORY / digest, release, mode=_PRIVATE_FILE)
        return digest

    def read_release(self, committed: Committed) -> bytes:
        """Returns stored bytes.

        Raises:
            LedgerError: they are missing or are not the bytes that were stored.
        """
        path = self._directory / RELEASES_DIRECTORY / committed.release_sha256
        line = next(number for number, entry in enumerate(self.chain.entries, 1) if entry is committed)
        try:
            release = path.read_bytes()
        except OSError as error:
            raise self._lost_release(path, error.strerror or str(error), line) from error
        if hashlib.sha256(release).hexdigest() != committed.release_sha256:
            raise self._lost_release(path, "its SHA-256 is another", line)
        return release

    def write_heads(self) -> None:
        """Writes the head of the chain to ``head.json`` and to the mirror; raises ``OutputError`` if it cannot."""
        for path in self._heads:
            with _writing(path):
                replace_file(path, encode_head(self.chain), mode=_PRIVATE_FILE)

    def _check_untouched(self) -> None:
        if not self._is_usable:
            raise LedgerError(str(self._directory), "an earlier write did not come to its end: open the ledger again")
        status = os.fstat(self._descriptor)
        try:
            is_the_same = os.path.samestat(status, (self._directory / LINES_FILE).stat())
        except OSError:
            is_the_same = False
        if not is_the_same or status.st_size != self._size_bytes:
            raise LedgerError(
                str(self._directory),
                "the ledger was changed by another hand, from this line on, while this process had it open",
                line=self._first_changed_line(),
            )

    def _first_changed_line(self) -> int:
        """Returns the first line on the disk that is not as this process left it.

        It is 1 where there are no lines, or all are as they were and in another file, which this process cannot write.
        """
        try:
            content = (self._directory / LINES_FILE).read_bytes()
        except OSError:
            return 1
        line = first_other_line(self.chain, content)
        return 1 if line > len(self.chain.hashes) and len(content) == self._size_bytes else line

    def _lost_release(self, path: Path, fault: str, line: int) -> LedgerError:
        hint = "put back a copy of the file; the round cannot be released with another noise"
        return LedgerError(
            str(self._directory), f"the released bytes in {path} cannot be sent again: {fault}; {hint}", line=line
        )


@contextmanager
def open_ledger_file(directory: Path, *, now: datetime, mirror: Path | None = None) -> Iterator[LedgerFile]:
    """Opens a ledger for writing, with every line verified, and closes it at the end of the block.

    A line whose write a crash interrupted is cut off, which the ledger notes at the time ``now``; bytes of a release
    that was not committed are removed, so that nobody sends them.

    Raises:
        InputError: there is no ledger, or another process has it open.
        LedgerError: a line is damaged, changed, moved or missing; or the mirror knows a line that this ledger does not
            have, so it is an older copy.
        OutputError: the directory or the mirror cannot be written.
    """
    with _locked(directory):
        chain, unfinished = _read(directory)
        mirrored = mirrored_head(mirror, chain.opened.terms)
        heads = (directory / HEAD_FILE, *mirrored)
        for path in mirrored:
            if os.path.lexists(path):
                check_head(chain, read_head(path, chain.source, lines=directory / LINES_FILE), str(path))
        with _writing(directory):
            if unfinished:
                _cut_off(directory / LINES_FILE, chain, unfinished, now)
            _remove_unfinished((directory / LINES_FILE, *heads), chain)
            descriptor = os.open(directory / LINES_FILE, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            file = LedgerFile(directory, chain, heads, descriptor)
            file.write_heads()
            yield file
        finally:
            os.close(descriptor)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    _check_is_ledger(directory)
    path = directory / LOCK_FILE
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"the privacy ledger {directory} is open already: another process holds the lock {path}. Wait until it ends"
        ) from error
    except OSError as error:
        raise _not_written(path, error) from error
    try:
        yield
    finally:
        lock.release()


def _read(directory: Path) -> tuple[LedgerChain, bytes]:
    """Returns the verified lines, and what stands behind them: empty, or the start of a line never acknowledged."""
    chain = LedgerChain(str(directory))
    _check_is_ledger(directory)
    lines = directory / LINES_FILE
    head = read_head(directory / HEAD_FILE, chain.source, lines=lines)  # first: a writer may add lines while we read
    try:
        content = lines.read_bytes()
    except OSError as error:
        fault = f"{lines} cannot be read: {error.strerror or error}; put back the newest copy of the ledger"
        raise LedgerError(chain.source, fault, line=1) from error
    unfinished = read_lines(chain, content, acknowledged=head.number)
    check_head(chain, head, HEAD_FILE)
    return chain, unfinished


def _cut_off(path: Path, chain: LedgerChain, unfinished: bytes, now: datetime) -> None:
    """Replaces what a crash left of a line by a note, in one step: a crash now changes nothing."""
    size_bytes = path.stat().st_size - len(unfinished)
    digest = hashlib.sha256(unfinished).hexdigest()
    note = chain.write_line(Recovered(cut_bytes=len(unfinished), cut_sha256=digest, time=now))
    replace_file(path, path.read_bytes()[:size_bytes] + note, mode=_PRIVATE_FILE)
    chain.read_line(note[:-1])


def _remove_unfinished(files: tuple[Path, ...], chain: LedgerChain) -> None:
    """Removes what writes that never came to their end left: parts of files, and releases that no line names."""
    committed = {entry.release_sha256 for entry in chain.entries if isinstance(entry, Committed)}
    for path in (files[0].parent / RELEASES_DIRECTORY).iterdir():
        if path.name not in committed:
            path.unlink()
    for file in files:
        for path in file.parent.glob(f".{file.name}.*.partial"):
            path.unlink()


def _write_all(descriptor: int, data: bytes) -> None:
    """Writes without a buffer, so that nothing is written later that failed now."""
    while data:
        data = data[os.write(descriptor, data) :]


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"the privacy ledger {path} cannot be written: {error.strerror or error}; nothing was released. Make room or "
        "give the right to write, then start again"
    )


def _check_is_ledger(directory: Path) -> None:
    if not any((directory / name).is_file() for name in (LINES_FILE, HEAD_FILE)):
        raise InputError(f"there is no privacy ledger in {directory}: create it, or give the directory that has it")
