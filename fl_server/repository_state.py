"""What the repository says now, and how it comes to say the next thing: each write is signed, whole, and in order."""

from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from fl_server.repository_files import place_file
from fl_server.repository_keys import key_in_force, public_keys, signers
from scaleot_core.bundle import SigningKey
from scaleot_core.bundle.repository import (
    LIFETIMES,
    METADATA_DIRECTORY,
    TARGET,
    THRESHOLD,
    TIMESTAMP_FILE,
    Role,
    metadata_file,
)
from scaleot_core.errors import InputError

REPOSITORY_DIRECTORY = "repository"

_Signed = TypeVar("_Signed", Root, Targets, Snapshot, Timestamp)


@dataclass(frozen=True)
class Expiries:
    """Until when clients accept each role's metadata; none where nothing is published yet."""

    root: datetime
    targets: datetime | None = None
    snapshot: datetime | None = None
    timestamp: datetime | None = None


class RepositoryState:
    """The newest metadata of each role, in memory and on the disk.

    All methods that write raise ``OutputError`` if they cannot, and leave what was there.
    """

    def __init__(self, home: Path, root: Metadata[Root]) -> None:
        self._home, self.repository = home, home / REPOSITORY_DIRECTORY
        self.root = root
        self.targets: Metadata[Targets] | None = None
        self.snapshot: Metadata[Snapshot] | None = None
        self.timestamp: Metadata[Timestamp] | None = None

    def key(self, role: Role) -> SigningKey:
        """Returns the key of a role that counts now; raises ``InputError`` if it is not in the home."""
        return key_in_force(self._home, role, self.root.signed.roles[role].keyids)

    def expiries(self) -> Expiries:
        """Returns until when all this is accepted."""
        rest = (self.targets, self.snapshot, self.timestamp)
        return Expiries(self.root.signed.expires, *(None if one is None else one.signed.expires for one in rest))

    def write_root(self, root: Metadata[Root], keys: list[SigningKey], now: datetime) -> None:
        """Writes a root as the next version: clients see it at once."""
        self.root = deepcopy(root)
        self._write(self.root, Role.ROOT, keys, now)

    def write_targets(self, targets: dict[str, TargetFile], keys: list[SigningKey], now: datetime) -> None:
        """Writes which targets there are; nobody sees it before the snapshot and the timestamp."""
        self.targets = Metadata(Targets(targets=targets))
        self._write(self.targets, Role.TARGETS, keys, now)

    def write_snapshot(self, keys: list[SigningKey], now: datetime) -> None:
        """Writes that these targets are the newest; nobody sees it before the timestamp."""
        self.snapshot = Metadata(Snapshot(meta={"targets.json": self._described(self.targets, Role.TARGETS)}))
        self._write(self.snapshot, Role.SNAPSHOT, keys, now)

    def write_timestamp(self, keys: list[SigningKey], now: datetime) -> None:
        """Says that this snapshot is the newest: clients see it from here on."""
        version = 1 if self.timestamp is None else self.timestamp.signed.version + 1
        self.timestamp = Metadata(
            Timestamp(version=version, snapshot_meta=self._described(self.snapshot, Role.SNAPSHOT))
        )
        self._sign_and_place(self.timestamp, Role.TIMESTAMP, keys, now)

    def _write(self, metadata: Metadata[_Signed], role: Role, keys: list[SigningKey], now: datetime) -> None:
        metadata.signed.version = last_version(self.repository, role) + 1
        self._sign_and_place(metadata, role, keys, now)

    def _sign_and_place(self, metadata: Metadata[_Signed], role: Role, keys: list[SigningKey], now: datetime) -> None:
        metadata.signed.expires = (now + LIFETIMES[role]).replace(microsecond=0)
        metadata.signatures.clear()
        for key in keys:
            for signer in signers(key):
                metadata.sign(signer, append=True)
        place_file(self.repository / metadata_file(role, metadata.signed.version), metadata.to_bytes())

    def _described(self, metadata: Metadata[_Signed] | None, role: Role) -> MetaFile:
        if metadata is None:
            raise AssertionError(f"{role} metadata is described before it is written")
        data = (self.repository / metadata_file(role, metadata.signed.version)).read_bytes()
        return MetaFile.from_data(metadata.signed.version, data, ["sha256"])


def read_state(home: Path) -> RepositoryState:
    """Reads the newest root, and what the timestamp leads to.

    Raises:
        InputError: there is no repository, or its metadata is damaged.
    """
    repository = home / REPOSITORY_DIRECTORY
    newest = last_version(repository, Role.ROOT)
    if not newest:
        raise InputError(f"{repository} is no repository yet: publish first, with scaleot publish {home}")
    state = RepositoryState(home, _read(repository / metadata_file(Role.ROOT, newest), Root))
    if (repository / TIMESTAMP_FILE).exists():
        state.timestamp = _read(repository / TIMESTAMP_FILE, Timestamp)
        version = state.timestamp.signed.snapshot_meta.version
        state.snapshot = _read(repository / metadata_file(Role.SNAPSHOT, version), Snapshot)
        version = state.snapshot.signed.meta["targets.json"].version
        state.targets = _read(repository / metadata_file(Role.TARGETS, version), Targets)
    return state


def published_version(home: Path) -> int:
    """Returns the version of the emulator that is published; raises ``InputError`` if there is none."""
    target = published_target(read_state(home))
    if target is None:
        raise InputError(f"{home} has published nothing yet: scaleot publish {home}")
    return int(target.custom["version"])


def published_target(state: RepositoryState) -> TargetFile | None:
    """Returns what the repository says of the published manifest; its ``custom`` has ``version`` and ``digest``."""
    return None if state.targets is None else state.targets.signed.targets.get(TARGET)


def first_root(keys: dict[Role, SigningKey]) -> Metadata[Root]:
    """Returns a root that lists both halves of these keys and asks for both, not signed yet."""
    root = Root(consistent_snapshot=True)
    for role, key in keys.items():
        for public in public_keys(key):
            root.add_key(public, role)
        root.roles[role].threshold = THRESHOLD
    return Metadata(root)


def with_key(root: Metadata[Root], role: Role, key: SigningKey) -> Metadata[Root]:
    """Returns a root that lists these keys of a role in place of its old ones, not signed yet."""
    changed = deepcopy(root)
    for key_id in list(changed.signed.roles[role].keyids):
        changed.signed.revoke_key(key_id, role)
    for public in public_keys(key):
        changed.signed.add_key(public, role)
    return changed


def last_version(repository: Path, role: Role) -> int:
    """Returns the highest version of a role's metadata that lies there, published or left behind; 0 for none."""
    names = (repository / METADATA_DIRECTORY).glob(f"[0-9]*.{role}.json")
    return max((int(path.name.partition(".")[0]) for path in names), default=0)


def _read(path: Path, kind: type[_Signed]) -> Metadata[_Signed]:
    try:
        metadata: Metadata[_Signed] = Metadata.from_file(str(path))
    except (RepositoryError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}. Bring it back from a copy of the repository") from error
    if not isinstance(metadata.signed, kind):
        raise InputError(f"{path}: expected metadata of the kind {kind.type}, got {metadata.signed.type}")
    return metadata
