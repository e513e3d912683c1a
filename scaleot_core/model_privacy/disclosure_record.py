"""The owner's record of the emulators of one model that have left: a JSON file named by the model's digest.

``{"format": "scaleot.disclosure/1", "model": SHA-256, "emulators": [{"digest", "date", "basis", "layers"}]}``, the
layers as ``LayerPlan.to_json`` gives them: index, role, and the share of rank that was kept. An entry without a basis,
as earlier ones are, has one of its own.
"""

import os
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scaleot_core.bundle.files import replace_file
from scaleot_core.compression.plan import LayerPlan
from scaleot_core.errors import InputError, ModelError, OutputError
from scaleot_core.model_privacy.disclosure import Revealed

_STRICT = ConfigDict(frozen=True, strict=True, extra="forbid")
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class DisclosedEmulator:
    """One emulator that left."""

    digest: str
    """SHA-256, in hex, of its bundle's manifest, or whatever else names it for good."""
    day: date
    """When it left, as the caller says."""
    revealed: Revealed


@dataclass(frozen=True)
class DisclosureRecord:
    """Every emulator of one full model that left, the oldest first."""

    model_digest: str
    """``LanguageModel.digest``."""
    emulators: tuple[DisclosedEmulator, ...] = ()

    @property
    def revealed(self) -> tuple[Revealed, ...]:
        """What each of them holds."""
        return tuple(emulator.revealed for emulator in self.emulators)


class _EmulatorEntry(BaseModel):
    model_config = _STRICT
    digest: _Digest
    date: date
    basis: str | None = None
    layers: list[dict[str, Any]]

    def to_emulator(self) -> DisclosedEmulator:
        return DisclosedEmulator(
            self.digest, self.date, Revealed(LayerPlan.from_json(self.layers), self.basis or self.digest)
        )


class _RecordFile(BaseModel):
    model_config = _STRICT
    format: Literal["scaleot.disclosure/1"] = "scaleot.disclosure/1"
    model: _Digest
    emulators: list[_EmulatorEntry]


def record_path(directory: Path, model_digest: str) -> Path:
    """Returns where the record of a model lies in the owner's directory."""
    return directory / f"disclosure-{model_digest}.json"


def read_disclosure(directory: Path, model_digest: str) -> DisclosureRecord:
    """Reads the record of a model; an empty one where none was written yet.

    Raises:
        InputError: there is a record, and it is malformed, of another version, or of another model.
    """
    path = record_path(directory, model_digest)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return DisclosureRecord(model_digest)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    try:
        file = _RecordFile.model_validate_json(content)
        entries = [entry.to_emulator() for entry in file.emulators]
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}" for fault in error.errors()]
        raise _unreadable(path, "; ".join(faults[:3])) from error
    except ModelError as error:
        raise _unreadable(path, str(error)) from error
    if file.model != model_digest:
        raise _unreadable(path, f"model: it is the record of {file.model}")
    return DisclosureRecord(model_digest, tuple(entries))


def check_recordable(directory: Path, model_digest: str) -> None:
    """Checks that an emulator could be added to the record of a model, before there is one; changes nothing.

    Raises:
        InputError: the record that is there cannot be read.
        OutputError: the directory cannot be made or written.
    """
    place = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(
            f"the record of disclosure in {directory} cannot be written: {place} is no directory of yours"
        )
    read_disclosure(directory, model_digest)


def record_disclosure(directory: Path, model_digest: str, emulator: DisclosedEmulator) -> DisclosureRecord:
    """Adds an emulator to the record of its model and returns the new record; it is on the disk by then.

    Makes the directory where there is none. Two processes that record at once both stay recorded. An emulator whose
    digest is recorded already changes nothing.

    Raises:
        InputError: the record that is there cannot be read.
        OutputError: the directory cannot be written.
    """
    path = record_path(directory, model_digest)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            record = read_disclosure(directory, model_digest)
            if emulator.digest not in {known.digest for known in record.emulators}:
                record = replace(record, emulators=(*record.emulators, emulator))
                _write(path, record)
            return record
    except OSError as error:
        raise OutputError(f"the disclosure record {path} cannot be written: {error.strerror or error}") from error


def _write(path: Path, record: DisclosureRecord) -> None:
    entries = [
        _EmulatorEntry(digest=one.digest, date=one.day, basis=one.revealed.basis, layers=one.revealed.plan.to_json())
        for one in record.emulators
    ]
    text = _RecordFile(model=record.model_digest, emulators=entries).model_dump_json(indent=1)
    replace_file(path, f"{text}\n".encode(), mode=0o600)


def _unreadable(path: Path, fault: str) -> InputError:
    return InputError(
        f"the disclosure record {path} cannot be read: {fault}. Put back a copy of it; if you move it away instead, "
        "what left earlier is no longer counted"
    )
