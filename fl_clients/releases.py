"""Updates that are ready to leave: on the disk before they are sent, and the same bytes whenever a round asks again.

A request may reach a client twice, since the first answer was lost or came late. Whoever trained twice might send two
updates for one round, and the server would believe neither. Under a mechanism of privacy the ledger keeps the bytes,
for a reason of its own; without one they lie here::

    run-<name>/<round>/update.json         what the update answers, and what goes into its statement
                       update.safetensors  its bytes, until the receipt is there
                       receipt.json         the server's signed receipt

A directory appears whole or not at all.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scaleot_core.bundle.canonical import Sha256
from scaleot_core.bundle.files import new_directory, replace_file, sync_directory, write_synced
from scaleot_core.digested import with_digest, without_digest
from scaleot_core.errors import InputError, InstructionsRefusedError, OutputError
from scaleot_core.federation.messages import Instructions, PrivateRelease, Receipt, digest_of, encode_statement

ENTRY_FILE, BLOB_FILE, RECEIPT_FILE = "update.json", "update.safetensors", "receipt.json"
_PRIVATE_FILE, _PRIVATE_DIRECTORY = 0o600, 0o700


@dataclass(frozen=True)
class LocalUpdate:
    """All that a round lets out of a data owner's records."""

    blob: bytes
    num_examples: int
    """Taken as public, under a mechanism of privacy too: it is the update's weight and the sample's size."""
    train_loss: float | None = None
    """Under a mechanism it stays here."""
    privacy: PrivateRelease | None = None


class ReleasedUpdate(BaseModel):
    """``update.json``."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)
    work_sha256: Sha256
    """Of the ``Instructions.asked_work`` that it answers."""
    update_sha256: Sha256
    num_examples: Annotated[int, Field(ge=1)]
    train_loss: float | None


class Releases:
    """The finished updates of one data owner, without a mechanism of privacy."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find(self, instructions: Instructions) -> LocalUpdate | None:
        """Returns the update that was made for these instructions, whichever attempt asks for it.

        Raises:
            InstructionsRefusedError: the round was answered for another request, or its receipt is there: it is over.
            InputError: the files are damaged.
        """
        place = self._place(instructions.run, instructions.round)
        if not place.exists():
            return None
        entry = self._entry(place)
        if entry.work_sha256 != _work(instructions):
            raise InstructionsRefusedError(
                "release.other_request", expected="the request that this round was answered for", got="another"
            )
        if not (place / BLOB_FILE).exists():
            raise InstructionsRefusedError(
                "release.over", expected="a round that is not over", got="one whose receipt is here"
            )
        blob = _read(place / BLOB_FILE)
        if hashlib.sha256(blob).hexdigest() != entry.update_sha256:
            raise InputError(f"{place / BLOB_FILE} is damaged: its SHA-256 is another. Remove {place} to train anew")
        return LocalUpdate(blob, entry.num_examples, entry.train_loss)

    def keep(self, instructions: Instructions, update: LocalUpdate) -> None:
        """Stores a finished update; when this returns it may leave.

        Raises:
            OutputError: the disk is full or cannot be written; the update must not leave.
        """
        entry = ReleasedUpdate(
            work_sha256=_work(instructions),
            update_sha256=digest_of(update.blob),
            num_examples=update.num_examples,
            train_loss=update.train_loss,
        )
        place = self._place(instructions.run, instructions.round)
        try:
            _make_private(self._directory)
            _make_private(place.parent)
        except OSError as error:
            raise OutputError(f"{place.parent} cannot be made: {error}") from error
        with new_directory(place) as building:
            building.chmod(_PRIVATE_DIRECTORY)
            write_synced(building / BLOB_FILE, update.blob, mode=_PRIVATE_FILE)
            write_synced(building / ENTRY_FILE, with_digest(entry.model_dump_json().encode()), mode=_PRIVATE_FILE)

    def note(self, receipt: Receipt, envelope: bytes) -> None:
        """Keeps a receipt that was verified, and removes the update's bytes: an update can leak training text.

        A receipt for what did not leave from here, under a mechanism for example, is kept without more.

        Raises:
            OutputError: the disk is full or cannot be written.
        """
        place = self._place(receipt.run, receipt.round)
        try:
            for directory in (self._directory, place.parent, place):
                _make_private(directory)
            replace_file(place / RECEIPT_FILE, envelope, mode=_PRIVATE_FILE)
            (place / BLOB_FILE).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"the receipt in {place} cannot be written: {error}") from error

    def _place(self, run: str, round_number: int) -> Path:
        # A run's name may be "." or "..", which a folder's name may not
        return self._directory / f"run-{run}" / str(round_number)

    def _entry(self, place: Path) -> ReleasedUpdate:
        if not (place / ENTRY_FILE).exists():
            raise InstructionsRefusedError(
                "release.over", expected="a round that is not over", got="one whose receipt is here"
            )
        try:
            return ReleasedUpdate.model_validate_json(without_digest(_read(place / ENTRY_FILE), place / ENTRY_FILE))
        except ValidationError as error:
            raise InputError(f"{place / ENTRY_FILE} is malformed: {error}") from error


def _work(instructions: Instructions) -> str:
    return digest_of(encode_statement(instructions.asked_work))


def _make_private(directory: Path) -> None:
    """Makes a directory whose parent exists, and waits until its name is on the disk."""
    if not directory.exists():
        directory.mkdir(mode=_PRIVATE_DIRECTORY, exist_ok=True)
        sync_directory(directory.parent)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
