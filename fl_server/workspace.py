"""The directories of a simulated federation: the model owner's, and one for every data owner with keys and grant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import tomli_w

from scaleot_core.bundle import (
    OpenedBundle,
    SealedBundle,
    SigningKey,
    VerifyingKey,
    generate_identity,
    generate_signing_key,
    issue_grant,
    load_identity,
    open_bundle,
    read_bundle,
    save_identity,
    save_signing_key,
    save_verifying_key,
    verify_bundle,
)
from scaleot_core.privacy.data_set import fingerprint
from scaleot_core.privacy.ledger_file import create_ledger
from scaleot_core.privacy.ledger_lines import LedgerTerms
from scaleot_core.privacy.units import unit_of
from scaleot_core.training.data import Record, read_records, write_records

DATA_FILE, GRANT_FILE, IDENTITY_FILE, OWNER_KEY_FILE = "train.jsonl", "grant.json", "identity.key", "owner.pub"
SIGNING_KEY_FILE = "signing.key"
LEDGER_DIRECTORY = "ledger"
BUNDLE_LIFETIME = timedelta(days=30)


@dataclass(frozen=True)
class Workspace:
    """Where everything of one simulated federation lies; private keys and text among it, so it is temporary."""

    root: Path
    owner_key: SigningKey

    @property
    def owner_directory(self) -> Path:
        """The model owner's directory of the run."""
        return self.root / "owner"

    @property
    def data_owners_directory(self) -> Path:
        """Holds one numbered directory for every data owner."""
        return self.root / "data-owners"

    def data_owner_directories(self, count: int) -> tuple[Path, ...]:
        """Returns the directories of data owners 0 to ``count - 1``."""
        return tuple(self.data_owners_directory / str(number) for number in range(count))


def create_workspace(root: Path) -> Workspace:
    """Makes the directories and the model owner's key."""
    workspace = Workspace(root, generate_signing_key())
    workspace.owner_directory.mkdir()
    workspace.data_owners_directory.mkdir()
    return workspace


def organisation(number: int) -> str:
    """Returns the name of a simulated data owner."""
    return f"data-owner-{number}"


def settle_data_owners(
    workspace: Workspace,
    sealed: SealedBundle,
    partitions: Sequence[Sequence[Record]],
    *,
    choices: Mapping[str, str | bool],
    policy: Mapping[str, float],
    privacy: Mapping[str, Any] | None,
) -> dict[str, VerifyingKey]:
    """Gives every data owner its keys, its grant, the model owner's public key, its own text and its own file.

    ``choices`` holds how they compute, as ``device``; ``policy`` the limits that they set: a simulation's allow what
    its run file asks for. ``privacy`` is their budget, if they have one; each then has a new ledger in its directory:
    simulated data owners live for one run. Returns the keys that they sign with, by organisation.
    """
    members = {}
    for directory, (number, records) in zip(
        workspace.data_owner_directories(len(partitions)), enumerate(partitions), strict=True
    ):
        directory.mkdir(mode=0o700)
        identity = generate_identity()
        save_identity(identity, directory / IDENTITY_FILE)
        signing_key = generate_signing_key()
        save_signing_key(signing_key, directory / SIGNING_KEY_FILE)
        members[organisation(number)] = signing_key.public
        save_verifying_key(workspace.owner_key.public, directory / OWNER_KEY_FILE)
        grant = issue_grant(
            sealed,
            owner=workspace.owner_key,
            organisation=organisation(number),
            recipient=identity.recipient,
            not_after=datetime.now(UTC) + BUNDLE_LIFETIME,
        )
        (directory / GRANT_FILE).write_bytes(grant)
        write_records(directory / DATA_FILE, records)
        own = {
            "organisation": organisation(number),
            "data": DATA_FILE,
            "bundle": str(sealed.path.absolute()),
            "grant": GRANT_FILE,
            "identity_key": IDENTITY_FILE,
            "owner_public_key": OWNER_KEY_FILE,
            "signing_key": SIGNING_KEY_FILE,
            **choices,
            "policy": dict(policy),
            **({} if privacy is None else {"privacy": {**privacy, **_own_share(len(records))}}),
        }
        if privacy is not None:
            _create_ledger(directory, privacy)
        (directory / "data-owner.toml").write_text(tomli_w.dumps(own), encoding="utf-8")
    return members


def _own_share(num_records: int) -> dict[str, Any]:
    """Returns what of a simulated data owner's privacy is its own; here the declared number is the true one."""
    return {"ledger": LEDGER_DIRECTORY, "declared_records": num_records}


def _create_ledger(directory: Path, privacy: Mapping[str, Any]) -> None:
    unit, neighbouring = unit_of(privacy["mechanisms"][0])
    terms = LedgerTerms(
        data_set=fingerprint(read_records(directory / DATA_FILE)),
        unit=unit,
        neighbouring=neighbouring,
        delta=privacy["delta"],
    )
    create_ledger(directory / LEDGER_DIRECTORY, terms, budget_epsilon=privacy["epsilon"], now=datetime.now(UTC))


def open_as_data_owner(workspace: Workspace, sealed: SealedBundle, number: int) -> OpenedBundle:
    """Opens the sealed bundle with a data owner's own grant and identity, as its client does."""
    directory, now = workspace.data_owner_directories(number + 1)[number], datetime.now(UTC)
    return open_bundle(
        verify_bundle(read_bundle(sealed.path), workspace.owner_key.public, now=now),
        (directory / GRANT_FILE).read_bytes(),
        load_identity(directory / IDENTITY_FILE),
        organisation=organisation(number),
        now=now,
    )
