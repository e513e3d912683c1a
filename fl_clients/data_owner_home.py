"""The data owner's home: the directory with its keys, its own file, and what the model owner admitted it with."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fl_clients.policy import DATA_OWNER_FILE
from scaleot_core.bundle.files import new_directory, write_synced
from scaleot_core.bundle.key_files import save_identity, save_signing_key
from scaleot_core.bundle.keys import generate_identity, generate_signing_key
from scaleot_core.bundle.tls_files import TlsFiles
from scaleot_core.enrolment.request import write_request
from scaleot_core.enrolment.transport_keys import (
    generate_transport_key,
    node_private_bytes,
    node_public_line,
    tls_private_bytes,
)

_SECRET, _PUBLIC = 0o600, 0o644


@dataclass(frozen=True)
class DataOwnerHome:
    """Where things lie in the home of a data owner; whether they are there is another question."""

    root: Path

    @property
    def identity_key(self) -> Path:
        """What grants and the admission are sealed to; secret."""
        return self.root / "identity.key"

    @property
    def signing_key(self) -> Path:
        """What statements to the server are signed with; secret."""
        return self.root / "signing.key"

    @property
    def node_key(self) -> Path:
        """The SuperNode's key in OpenSSH's form; secret."""
        return self.root / "node.key"

    @property
    def node_public_key(self) -> Path:
        """Its public half, one line."""
        return self.root / "node.pub"

    @property
    def request(self) -> Path:
        """The enrolment request, for the model owner."""
        return self.root / "enrolment.json"

    @property
    def owner_public_key(self) -> Path:
        """The model owner's key, pinned when the admission was accepted."""
        return self.root / "owner.pub"

    @property
    def repository_root(self) -> Path:
        """The root metadata of the owner's repository, pinned when the admission was accepted."""
        return self.root / "root.json"

    @property
    def federation(self) -> Path:
        """Names and addresses of the federation; there once an admission was accepted."""
        return self.root / "federation.json"

    @property
    def tls(self) -> TlsFiles:
        """What this data owner shows to the services, and whom it believes."""
        return TlsFiles(self.root / "tls.pem", self.root / "tls.key", self.root / "authority.pem")


def create_data_owner_home(root: Path, organisation: str, *, own_file: str, now: datetime) -> bytes:
    """Makes a home with fresh keys and the data owner's own file, whole or not at all; returns its enrolment request.

    Raises:
        InputError: no member of a federation can have this name.
        OutputError: the home exists already, or cannot be written.
    """
    identity, signing_key = generate_identity(), generate_signing_key()
    node_key, tls_key = generate_transport_key(), generate_transport_key()
    request = write_request(
        organisation,
        signing_key=signing_key,
        recipient=identity.recipient,
        node_key=node_key,
        tls_key=tls_key,
        now=now,
    )
    with new_directory(root) as building:
        building.chmod(0o700)
        home = DataOwnerHome(building)
        save_identity(identity, home.identity_key)
        save_signing_key(signing_key, home.signing_key)
        write_synced(home.node_key, node_private_bytes(node_key), mode=_SECRET)
        write_synced(home.node_public_key, f"{node_public_line(node_key)}\n".encode(), mode=_PUBLIC)
        write_synced(home.tls.private_key, tls_private_bytes(tls_key), mode=_SECRET)
        write_synced(home.request, request, mode=_PUBLIC)
        write_synced(building / DATA_OWNER_FILE, own_file.encode(), mode=_SECRET)
    return request
