"""A process that ends in the middle of its writes, as at a power cut."""

import os
import random
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any


class PowerCut:
    """Ends a process just before its ``moment``-th call that changes the disk, with what was not synced yet lost.

    A file that was not synced keeps a random part of what was last written to it; a rename whose directory was not
    synced did not happen. ``lose`` says for each of these, in turn, whether it is lost.
    """

    def __init__(self, moment: int, lose: Callable[[], bool], draw: random.Random) -> None:
        self._left, self._lose, self._draw = moment, lose, draw
        self._unsynced: dict[str, int] = {}
        self._renamed: dict[str, Callable[[], None]] = {}
        self._synced: set[str] = set()

    def install(self) -> None:
        write, sync, replace, rename = os.write, os.fsync, os.replace, os.rename

        def cut_write(descriptor: int, data: bytes) -> int:
            self._tick()
            self._unsynced.setdefault(_path(descriptor), os.fstat(descriptor).st_size)
            return write(descriptor, data)

        def cut_sync(descriptor: int) -> None:
            self._tick()
            sync(descriptor)
            self._synced.add(_path(descriptor))
            self._unsynced.pop(_path(descriptor), None)
            self._renamed.pop(_path(descriptor), None)

        def cut_replace(source: Path, target: Path) -> None:
            self._tick()
            old = target.read_bytes() if target.exists() else None
            replace(source, target)
            if str(source) not in self._synced:
                self._unsynced[str(target)] = 0
            self._renamed[str(target.parent)] = lambda: (
                target.unlink(missing_ok=True) if old is None else _put_back(target, old)
            )

        def cut_rename(source: Path, target: Path) -> None:
            self._tick()
            rename(source, target)
            self._renamed[str(target.parent)] = lambda: rename(target, source)

        for name, call in (("write", cut_write), ("fsync", cut_sync), ("replace", cut_replace), ("rename", cut_rename)):
            setattr(os, name, call)

    def install_for_sqlite(self) -> None:
        """Cuts transactions as well: before they begin to be written, in the middle of that, and when they are done.

        What SQLite has synced stays; a transaction that it is writing leaves a part of its log.
        """
        cut, connect = self, sqlite3.connect

        class CutConnection(sqlite3.Connection):
            def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
                if statement != "commit":
                    return super().execute(statement, *arguments)
                cut._tick()
                log = Path(str(self.file) + "-wal")
                synced_bytes = log.stat().st_size if log.exists() else 0
                done = super().execute(statement)
                cut._tick(torn=(log, synced_bytes))
                cut._tick()
                return done

            @property
            def file(self) -> str:
                return str(super().execute("pragma database_list").fetchone()[2])

        def cut_connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
            return connect(*arguments, factory=CutConnection, **options)

        sqlite3.connect = cut_connect  # type: ignore[assignment]

    def _tick(self, torn: tuple[Path, int] | None = None) -> None:
        self._left -= 1
        if self._left == 0:
            if torn is not None and torn[0].exists():
                log, synced_bytes = torn
                os.truncate(log, self._draw.randint(min(synced_bytes, log.stat().st_size), log.stat().st_size))
            for path, synced_bytes in self._unsynced.items():
                if Path(path).exists() and self._lose():
                    os.truncate(path, self._draw.randint(synced_bytes, Path(path).stat().st_size))
            for undo in self._renamed.values():
                if self._lose():
                    undo()
            os.kill(os.getpid(), signal.SIGKILL)


def _path(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def _put_back(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(content)
