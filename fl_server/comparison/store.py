"""What a comparison has computed so far, one small file each: a killed one goes on where it was."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fl_server.owner import write_atomically
from scaleot_core.errors import OutputError

FORMAT = "scaleot.comparison/2"
VERSION_FILE, RESULTS_FOLDER = "comparison.json", "results"


def check_directory(directory: Path, versions: Mapping[str, str]) -> None:
    """Checks that a store of these versions can be in ``directory``, or be begun there; writes nothing.

    Raises:
        OutputError: the directory cannot be read, holds something else, or was begun by other versions.
    """
    try:
        if not (directory / VERSION_FILE).exists():
            if directory.exists() and any(_is_foreign(path) for path in directory.iterdir()):
                raise OutputError(f"{directory} holds something else than a comparison: give --out another one")
            return
        found = dict(json.loads((directory / VERSION_FILE).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(f"the comparison in {directory} cannot be read or begun: {error}") from error
    if found != (stamp := _stamp(versions)):
        raise OutputError(
            f"the comparison in {directory} was begun by {_named(found)}, this is {_named(stamp)}: "
            "give --out another directory, or delete that one"
        )


@dataclass(frozen=True)
class Origin:
    """Where and when a result was computed."""

    machine: str
    date: str
    """In UTC, as 2026-11-27."""


@dataclass(frozen=True)
class StoredResult:
    """A result that was found or computed now."""

    values: dict[str, Any]
    origin: Origin


class ResultStore:
    """Results by what they are the result of; a file is there whole or not at all."""

    def __init__(self, directory: Path, versions: Mapping[str, str], machine: str) -> None:
        """Opens or makes the store in ``directory``; ``machine`` names where its results are computed from now on.

        Raises:
            OutputError: the directory cannot be written, holds something else, or was begun by other versions.
        """
        self._folder = directory / RESULTS_FOLDER
        self._machine = machine
        self._computed = 0
        check_directory(directory, versions)
        try:
            if not (directory / VERSION_FILE).exists():
                self._folder.mkdir(parents=True, exist_ok=True)
                write_atomically(directory / VERSION_FILE, json.dumps(_stamp(versions), indent=1).encode())
        except OSError as error:
            raise OutputError(f"the comparison in {directory} cannot be read or begun: {error}") from error
        check_directory(directory, versions)  # other versions may have begun it at the same moment

    @property
    def num_computed(self) -> int:
        """How many results were computed, not found, since this store was opened."""
        return self._computed

    def get_or_compute(self, what: str, key: Mapping[str, Any], compute: Callable[[], dict[str, Any]]) -> StoredResult:
        """Returns the result ``what`` of ``key``, computed if it is not there yet.

        Raises:
            OutputError: it cannot be written.
        """
        digest = hashlib.sha256(json.dumps([what, key], sort_keys=True).encode()).hexdigest()
        path = self._folder / f"{what}-{digest[:32]}.json"
        try:
            return _read(path.read_bytes())
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise OutputError(f"{path} is damaged: delete it, it will be computed again") from error
        values = compute()
        self._computed += 1
        origin = Origin(self._machine, datetime.now(UTC).date().isoformat())
        content = json.dumps({"values": values, "origin": vars(origin)}, indent=1).encode()
        write_atomically(path, content)
        return _read(content)


def _read(content: bytes) -> StoredResult:
    stored = json.loads(content)
    return StoredResult(dict(stored["values"]), Origin(**stored["origin"]))


def _is_foreign(path: Path) -> bool:
    """Tells whether no comparison made this; another process may be beginning the same one right now."""
    return path.name not in (RESULTS_FOLDER, VERSION_FILE) and not path.name.startswith(f".{VERSION_FILE}.")


def _stamp(versions: Mapping[str, str]) -> dict[str, Any]:
    return {"format": FORMAT, "versions": dict(versions)}


def _named(stamp: Mapping[str, Any]) -> str:
    names = ", ".join(f"{name} {version}" for name, version in stamp.get("versions", {}).items())
    return f"{stamp.get('format', 'no format')} with {names or 'unknown versions'}"
