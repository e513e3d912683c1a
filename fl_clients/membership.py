"""What a data owner's home says of the federation that it was admitted to: checked before anything is started.

The state of the running node lies in ``HOME/flower``: ``secret`` is what its SuperExec proves itself with,
``step.json`` the step that training is at, each part has its ``FLWR_HOME`` in a directory of its name and its log in
``logs``.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fl_clients.acceptance import read_federation
from fl_clients.data_owner_home import DataOwnerHome
from fl_clients.policy import DATA_OWNER_FILE, DataOwnerFile, read_data_owner_file
from scaleot_core.address import Address, parse_address
from scaleot_core.bundle.key_files import read_private_file
from scaleot_core.bundle.tls_files import TlsFiles, read_tls_files
from scaleot_core.errors import InputError

LOOPBACK = "127.0.0.1"
_UNQUOTABLE = frozenset("\"'\\\n")


@dataclass(frozen=True)
class Membership:
    """A data owner's home whose admission, keys and certificates were checked."""

    home: Path
    own: DataOwnerFile
    fleet: Address
    distribution: Address
    tls: TlsFiles

    @property
    def state(self) -> Path:
        """Everything that the running processes keep."""
        return self.home / "flower"

    @property
    def secret(self) -> Path:
        """What the SuperExec proves itself with to its SuperNode."""
        return self.state / "secret"

    @property
    def node_key(self) -> Path:
        """The SuperNode's private key."""
        return DataOwnerHome(self.home).node_key

    @property
    def runtime(self) -> Address:
        """Where the SuperNode hands out work, on this machine alone."""
        return Address(LOOPBACK, self.own.node_port)


_USUAL_PLACES = ("bundle", "grant", "identity_key", "owner_public_key")
"""Keys of ``data-owner.toml`` that are for simulations: admission, fetch and rounds of a home all use its own files."""


def read_membership(home: Path) -> Membership:
    """Reads a data owner's home and checks what can be checked without starting anything.

    Raises:
        InputError: something is missing, not valid now, or readable by others; the message says what to do.
        RunFileError: ``data-owner.toml`` has faults.
    """
    home = home.absolute()
    if _UNQUOTABLE & set(str(home)):
        raise InputError(
            f"{home}: expected a path without quotes, backslashes and line breaks, which Flower cannot take"
        )
    own = read_data_owner_file(home)
    _check_usual_places(home, own)
    federation, tls = read_federation(DataOwnerHome(home)), DataOwnerHome(home).tls
    read_tls_files(tls, now=datetime.now(UTC))
    fleet, distribution = parse_address(federation.fleet), parse_address(federation.distribution)
    membership = Membership(home, own, fleet, distribution, tls)
    read_private_file(membership.node_key)
    membership.state.mkdir(mode=0o700, exist_ok=True)
    if membership.secret.exists():
        read_private_file(membership.secret)
    return membership


def _check_usual_places(home: Path, own: DataOwnerFile) -> None:
    for key in _USUAL_PLACES:
        usual = home / DataOwnerFile.model_fields[key].default
        if getattr(own, key) != usual:
            raise InputError(
                f"{home / DATA_OWNER_FILE}: {key} leads to {getattr(own, key)}, and who joins a federation keeps it at "
                f"{usual}: leave the key out"
            )
