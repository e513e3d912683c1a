"""What ``scaleot serve`` needs of the model owner's home: read and checked once, before anything is started.

The state of the running federation lies in ``HOME/superlink``: ``state.db`` is the SuperLink's, ``secret`` what its
SuperExec proves itself with, each part has its ``FLWR_HOME`` in a directory of its name and its log in ``logs``.
"""

import errno
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509

from fl_server.owner_home import OwnerHome
from fl_server.registry import Registry
from scaleot_core.address import Address, parse_address
from scaleot_core.bundle.key_files import read_private_file
from scaleot_core.bundle.tls_files import TlsFiles, read_tls_files
from scaleot_core.config import read_run_file_elsewhere
from scaleot_core.errors import InputError
from scaleot_core.run_file import ServeSection

OWNER_FILE = "owner.toml"
STATE_DIRECTORY = "superlink"
RUN_FILE = "flower-run.json"
"""The id of the run that Flower runs."""
SEEN_FILE = "seen.json"
"""When each organisation's node was last heard of, in seconds since 1970."""
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Deployment:
    """A model owner's home whose settings and certificates were checked."""

    home: Path
    settings: ServeSection
    tls: TlsFiles

    @property
    def registry(self) -> Path:
        """The registry of organisations."""
        return OwnerHome(self.home).registry

    @property
    def state(self) -> Path:
        """Everything that the running processes keep."""
        return self.home / STATE_DIRECTORY

    @property
    def run(self) -> Path:
        """The run's directory, as ``fl_server.owner`` describes it."""
        return self.home / "run"

    @property
    def secret(self) -> Path:
        """What a SuperExec proves itself with to its SuperLink."""
        return self.state / "secret"

    @property
    def fleet(self) -> Address:
        """Where the edge listens."""
        return parse_address(self.settings.fleet)

    @property
    def distribution(self) -> Address:
        """Where the distribution service listens."""
        return parse_address(self.settings.distribution)

    @property
    def superlink(self) -> Address:
        """Where the SuperLink itself listens."""
        return Address(LOOPBACK, self.settings.superlink_port)


def read_deployment(home: Path) -> Deployment:
    """Reads a model owner's home and checks what can be checked without starting anything.

    Raises:
        InputError: something is missing, not valid now, or readable by others; the message says what to do.
        RunFileError: ``owner.toml`` has faults.
        ChainError: the registry of organisations cannot be believed.
    """
    home = home.absolute()
    if not (home / OWNER_FILE).is_file():
        raise InputError(
            f"there is no {home / OWNER_FILE}: write a run file there, in a model owner's home as scaleot keygen makes "
            "it"
        )
    settings = read_run_file_elsewhere(home / OWNER_FILE).serve
    tls = OwnerHome(home).server_tls
    deployment = Deployment(home, settings, tls)
    Registry(deployment.registry)
    credentials = read_tls_files(tls, now=datetime.now(UTC))
    _check_names(x509.load_pem_x509_certificates(credentials.certificate)[0], deployment)
    addresses = (deployment.fleet, deployment.distribution, deployment.superlink)
    if len({address.port for address in addresses}) < len(addresses):
        raise InputError(
            f"{home / OWNER_FILE}: [serve] expected three different ports, got {', '.join(map(str, addresses))}"
        )
    deployment.state.mkdir(mode=0o700, exist_ok=True)
    if deployment.secret.exists():
        read_private_file(deployment.secret)
    return deployment


def check_ports(*addresses: Address) -> None:
    """Checks that addresses can be listened on.

    Raises:
        InputError: one cannot; the message says whether it is taken, or not this machine's.
    """
    for address in addresses:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just given up is free
            try:
                probe.bind((address.host, address.port))
                probe.listen()
            except OSError as error:
                why = "it is taken by another process" if error.errno == errno.EADDRINUSE else error.strerror
                raise InputError(
                    f"{address} cannot be listened on: {why}. Stop that process, or choose another address in "
                    f"[serve] of {OWNER_FILE}"
                ) from error


def _check_names(certificate: x509.Certificate, deployment: Deployment) -> None:
    """Flower's own processes reach the SuperLink by number, on loopback, and check the name like everybody."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        addresses = names.get_values_for_type(x509.IPAddress)
    except x509.ExtensionNotFound:
        addresses = []
    if ip_address(LOOPBACK) not in addresses:
        raise InputError(
            f"certificate {deployment.tls.certificate} is not for {LOOPBACK}, where the SuperLink listens: have one "
            f"issued with --host {LOOPBACK} too"
        )
