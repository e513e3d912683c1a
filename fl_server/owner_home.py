"""The model owner's home: the directory with its keys, its authority, its repository, members and audit log."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fl_server.audit_log import create_audit_log
from fl_server.authority import AUTHORITY_CERTIFICATE, SERVER_CERTIFICATE, SERVER_KEY, create_authority
from fl_server.registry import create_registry
from scaleot_core.bundle.files import new_directory
from scaleot_core.bundle.key_files import save_signing_key, save_verifying_key
from scaleot_core.bundle.keys import VerifyingKey, generate_signing_key
from scaleot_core.bundle.tls_files import TlsFiles


@dataclass(frozen=True)
class OwnerHome:
    """Where things lie in the home of a model owner; whether they are there is another question."""

    root: Path

    @property
    def owner_key(self) -> Path:
        """The signing key; secret."""
        return self.root / "owner.key"

    @property
    def owner_public_key(self) -> Path:
        """What every organisation pins."""
        return self.root / "owner.pub"

    @property
    def authority(self) -> Path:
        """The certificate authority's directory; secret."""
        return self.root / "authority"

    @property
    def registry(self) -> Path:
        """The registry of organisations."""
        return self.root / "organisations.jsonl"

    @property
    def audit_log(self) -> Path:
        """The audit log."""
        return self.root / "audit.jsonl"

    @property
    def run(self) -> Path:
        """The run's directory, as ``owner`` describes it."""
        return self.root / "run"

    @property
    def server_tls(self) -> TlsFiles:
        """What the owner's services show, and whom they believe."""
        return TlsFiles(
            self.authority / SERVER_CERTIFICATE, self.authority / SERVER_KEY, self.authority / AUTHORITY_CERTIFICATE
        )


def create_owner_home(root: Path, hosts: Sequence[str], *, now: datetime) -> VerifyingKey:
    """Makes a home with fresh keys, whole or not at all, and returns the public key.

    ``hosts`` are the names and addresses that organisations will reach the services at.

    Raises:
        InputError: a host is neither a host name nor an address.
        OutputError: the home exists already, or cannot be written.
    """
    from fl_server.repository import create_repository  # loads torch, and a home's paths are all that the edge needs

    owner = generate_signing_key()
    with new_directory(root) as building:
        building.chmod(0o700)
        home = OwnerHome(building)
        save_signing_key(owner, home.owner_key)
        save_verifying_key(owner.public, home.owner_public_key)
        create_authority(home.authority, hosts, now=now)
        create_registry(home.registry, owner.public, now=now)
        create_audit_log(home.audit_log, owner.public, now=now)
        create_repository(building, now=now)
    return owner.public
