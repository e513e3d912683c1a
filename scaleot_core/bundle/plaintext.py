"""Where decrypted files live: in memory that nobody can change, and never on a disk.

On Linux a file is an anonymous memory file (``memfd_create``), sealed once it is complete: after that not even its
owner can write, grow or shrink it, and it is gone when the last user closes it. Its pages can go to swap space; a host
that forbids this has none, or encrypts it.

A system or a Python without such files gets the second best: a fresh directory of mode 0700 under the system's
directory for temporary files, files of mode 0400 in it, all removed by ``close``. A killed process leaves them behind.
"""

import fcntl
import os
import tempfile
from contextlib import ExitStack
from io import BufferedWriter
from pathlib import Path
from secrets import token_hex
from typing import Protocol, runtime_checkable


@runtime_checkable
class PlaintextStore(Protocol):
    """A place for decrypted files."""

    def create(self) -> BufferedWriter:
        """Returns a new, empty file to write to."""

    def finish(self, file: BufferedWriter) -> Path:
        """Makes a complete file unchangeable and returns the path to read it by, valid until ``close``."""

    def close(self) -> None:
        """Gives all files up."""


class MemoryStore:
    """Decrypted files in sealed memory."""

    def __init__(self) -> None:
        self._files = ExitStack()

    def create(self) -> BufferedWriter:
        """Returns an anonymous file in memory."""
        descriptor = os.memfd_create("scaleot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        return self._files.enter_context(os.fdopen(descriptor, "wb"))

    def finish(self, file: BufferedWriter) -> Path:
        """Seals the file against writing, growing, shrinking and unsealing."""
        file.flush()
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(file.fileno(), fcntl.F_ADD_SEALS, seals)
        return Path(f"/proc/self/fd/{file.fileno()}")

    def close(self) -> None:
        """Closes the files; what still maps one keeps its pages alive."""
        self._files.close()


class DirectoryStore:
    """Decrypted files in a private directory, for systems without memory files."""

    def __init__(self) -> None:
        self._files = ExitStack()
        self._directory = Path(self._files.enter_context(tempfile.TemporaryDirectory(prefix="scaleot-")))

    def create(self) -> BufferedWriter:
        """Returns a new file in the private directory."""
        return self._files.enter_context((self._directory / token_hex(8)).open("xb"))

    def finish(self, file: BufferedWriter) -> Path:
        """Makes the file read-only."""
        file.close()
        path = Path(file.name)
        path.chmod(0o400)
        return path

    def close(self) -> None:
        """Removes the files and their directory."""
        self._files.close()


def plaintext_store() -> PlaintextStore:
    """Returns the safest store that this system has."""
    return MemoryStore() if hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS") else DirectoryStore()
