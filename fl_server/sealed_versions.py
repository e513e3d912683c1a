"""The sealed emulators of a model owner's home: one directory for each version, whole or not there at all.

==========================================  =======================================================================
``sealed/<version>/bundle/``                the sealed bundle, as it is published
``sealed/<version>/data.key``               the key that opens it, mode 0600: for the grants of later organisations
``sealed/<version>/sealed.json``            ``SealedRecord``: what was sealed, what of the model it gives away
``sealed/<version>/run.toml``               the run file, as it was understood
``sealed/<version>/initial_adapter.safetensors``  what the first round starts from
``sealed/<version>/importance/``            scores and harmonizers, where the builder has them
==========================================  =======================================================================
"""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scaleot_core.adapters.spec import AdapterSpec
from scaleot_core.bundle import (
    DataKey,
    OpenedBundle,
    SealedBundle,
    load_data_key,
    load_verifying_key,
    open_own_bundle,
    read_bundle,
    verify_bundle,
)
from scaleot_core.bundle.canonical import Sha256
from scaleot_core.bundle.file_lock import locked
from scaleot_core.bundle.files import sync_directory, write_synced
from scaleot_core.bundle.manifest import MAX_INTEGER, BundleId
from scaleot_core.compression.emulator_report import EmulatorReport
from scaleot_core.compression.plan import LayerPlan
from scaleot_core.errors import InputError

SEALED_DIRECTORY, BUNDLE_DIRECTORY, IMPORTANCE_DIRECTORY = "sealed", "bundle", "importance"
DISCLOSURE_DIRECTORY = "disclosure"
PLAIN_PREFIX = ".plain-"
"""Of the directory that holds an emulator's plaintext while it is being sealed."""
_REMOVED_SUFFIX = ".removed.partial"
DATA_KEY_FILE, RECORD_FILE, RUN_FILE = "data.key", "sealed.json", "run.toml"


class SealedRecord(BaseModel):
    """``sealed.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    format: Literal["scaleot.sealed-version/1"] = "scaleot.sealed-version/1"
    version: Annotated[int, Field(ge=1, le=MAX_INTEGER)]
    bundle_id: BundleId
    digest: Sha256
    """Of the bundle's signed manifest."""
    size_bytes: Annotated[int, Field(ge=0)]
    """What a data owner downloads."""
    not_after: datetime
    builder: str
    emulator: EmulatorReport
    adapter: AdapterSpec
    layers: list[dict[str, Any]]

    @property
    def plan(self) -> LayerPlan:
        """The role of every original layer."""
        return LayerPlan.from_json(self.layers)


@dataclass(frozen=True)
class SealedVersion:
    """One sealed emulator in the model owner's home."""

    directory: Path
    record: SealedRecord
    bundle: SealedBundle

    @property
    def version(self) -> int:
        """Counted from 1; a later emulator has a higher one."""
        return self.record.version


@contextmanager
def next_version(home: Path, version: int | None) -> Iterator[tuple[Path, int]]:
    """Lends the directory that the next version, or ``version``, is to have, and its number; nobody else seals then.

    What a killed process left of a version is removed. Raises ``InputError`` if ``version`` is not above every one that
    is there, or another process is sealing, and ``OutputError`` if the home cannot be written.
    """
    sealed = home / SEALED_DIRECTORY
    in_use = f"{sealed} is in use: another process is sealing. Wait until it ends"
    with locked(sealed / "lock", in_use=in_use):
        for left in (*sealed.glob(f"{PLAIN_PREFIX}*"), *sealed.glob(".*.partial")):
            shutil.rmtree(left, ignore_errors=True)
        newest = max(sealed_numbers(home), default=0)
        number = newest + 1 if version is None else version
        if not newest < number <= MAX_INTEGER:
            raise InputError(f"version {number}: expected one above {newest}, the newest in {sealed}")
        yield sealed / str(number), number


def write_record(directory: Path, record: SealedRecord) -> None:
    """Writes ``sealed.json`` of a version that is being made."""
    write_synced(directory / RECORD_FILE, record.model_dump_json(indent=2).encode(), mode=0o600)


def read_sealed(home: Path, version: int | None = None) -> SealedVersion:
    """Reads a version of the sealed emulator, or the newest.

    Raises:
        InputError: there is none, or others may read its data key.
        VerificationError: its data key is none.
    """
    number = max(sealed_numbers(home), default=None) if version is None else version
    directory = home / SEALED_DIRECTORY / str(number)
    if number is None or not directory.is_dir():
        wanted = "no sealed emulator" if version is None else f"no version {version} of the emulator"
        raise InputError(f"{home} has {wanted}: seal one with scaleot seal FILE.toml --home {home}")
    try:
        record = SealedRecord.model_validate_json((directory / RECORD_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{directory / RECORD_FILE} cannot be read: {error}") from error
    key = load_data_key(directory / DATA_KEY_FILE)
    bundle = SealedBundle(directory / BUNDLE_DIRECTORY, record.bundle_id, record.digest, record.size_bytes, key)
    return SealedVersion(directory, record, bundle)


def open_as_owner(bundle: Path, data_key: DataKey, owner_public_key: Path) -> OpenedBundle:
    """Verifies a sealed bundle as its data owners do, and opens it with the owner's own data key.

    Raises:
        InputError: the public key cannot be read.
        VerificationError: it is not what was sealed, or out of date.
    """
    owner = load_verifying_key(owner_public_key)
    return open_own_bundle(verify_bundle(read_bundle(bundle), owner, now=datetime.now(UTC)), data_key)


def remove_sealed(home: Path, numbers: Iterable[int]) -> None:
    """Removes versions: the name of each first, at once, and then their files; raises ``OSError``.

    What a process that is killed meanwhile leaves is removed by the next one that comes here or seals.
    """
    sealed = home / SEALED_DIRECTORY
    for number in numbers:
        (sealed / str(number)).rename(sealed / f".{number}{_REMOVED_SUFFIX}")
    sync_directory(sealed)
    for left in sealed.glob(f".*{_REMOVED_SUFFIX}"):
        shutil.rmtree(left, ignore_errors=True)  # who seals removes it, too


def sealed_numbers(home: Path) -> list[int]:
    """Returns the versions that are there, in no order."""
    directory = home / SEALED_DIRECTORY
    return [int(path.name) for path in directory.iterdir() if path.name.isdecimal()] if directory.is_dir() else []
