"""What the model owner decides about organisations: approve, renew, revoke.

Every decision is a line of the registry first, and then of the audit log. Where a crash came between, the next
decision writes the missing line: so the owner's signed heads of the audit log stand for the registry, too.
"""

from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import TypeAdapter, ValidationError

from fl_server.audit_log import AuditLog
from fl_server.authority import (
    AUTHORITY_CERTIFICATE,
    SERVER_CERTIFICATE,
    fingerprint_of,
    hosts_of,
    issue_to_member,
    load_authority,
    read_certificate,
)
from fl_server.chain_file import ChainLine
from fl_server.owner_home import OwnerHome
from fl_server.registry import Approved, Change, Entry, Member, Registry, Renewed, Revoked, read_changes
from fl_server.repository_state import REPOSITORY_DIRECTORY, last_version
from scaleot_core.bundle.canonical import Json
from scaleot_core.bundle.files import read_small_file
from scaleot_core.bundle.key_files import load_signing_key
from scaleot_core.bundle.repository import MAX_METADATA_BYTES, Role, metadata_file
from scaleot_core.enrolment.admission import Address, AdmissionContents, write_admission
from scaleot_core.enrolment.request import Applicant
from scaleot_core.errors import InputError

REGISTRY_EVENT = "registry"
_ADDRESS: TypeAdapter[str] = TypeAdapter(Address)


@dataclass(frozen=True)
class Addresses:
    """Where members reach the two services, as ``host:port``."""

    distribution: str
    fleet: str


def approve(home: OwnerHome, applicant: Applicant, addresses: Addresses, *, max_examples: int, now: datetime) -> bytes:
    """Makes an organisation a member and returns its admission; the fingerprint of its request must be compared before.

    Raises:
        InputError: its name or a key of it is taken, an address is not one of the server's certificate, or the
            authority cannot issue.
        ChainError: registry or audit log cannot be believed.
        OutputError: they cannot be written.
    """
    authority = load_authority(home.authority, now=now)
    check_addresses(home, addresses)
    certificate = issue_to_member(authority, applicant.organisation, applicant.tls_public_key, now=now)
    # before the decision, so that nothing can fail after it
    admission = _admission(home, applicant.organisation, applicant, certificate, addresses, now=now)
    approved = Approved(
        certificate_not_after=certificate.not_valid_after_utc,
        certificate_sha256=fingerprint_of(certificate),
        max_examples=max_examples,
        node_public_key=applicant.node_public_key,
        organisation=applicant.organisation,
        recipient=applicant.recipient,
        request_sha256=applicant.request_sha256,
        time=now,
        tls_public_key=applicant.tls_public_key,
        verifying_key=applicant.verifying_key,
    )
    _decide(home, Registry(home.registry), approved, now=now)
    return admission


def renew(home: OwnerHome, organisation: str, addresses: Addresses, *, now: datetime) -> bytes:
    """Issues a member another certificate for the same key and returns a new admission; raises like ``approve``."""
    authority = load_authority(home.authority, now=now)
    check_addresses(home, addresses)
    registry = Registry(home.registry)
    member = registry.known_member(organisation)
    certificate = issue_to_member(authority, organisation, member.tls_public_key, now=now)
    renewed = Renewed(
        certificate_not_after=certificate.not_valid_after_utc,
        certificate_sha256=fingerprint_of(certificate),
        organisation=organisation,
        time=now,
    )
    admission = _admission(home, organisation, member, certificate, addresses, now=now)
    _decide(home, registry, renewed, now=now)
    return admission


def revoke(home: OwnerHome, organisation: str, *, from_round: int, reason: str, now: datetime) -> None:
    """Ends a membership: updates for ``from_round`` and later are refused, and downloads at once.

    Raises:
        InputError: there is no such active member, or round or reason cannot stand in the registry.
        ChainError, OutputError: as ``approve``.
    """
    registry = Registry(home.registry)
    registry.known_member(organisation)
    try:
        revoked = Revoked(from_round=from_round, organisation=organisation, reason=reason, time=now)
    except ValidationError as error:
        fault = error.errors()[0]
        raise InputError(f"revocation, {fault['loc'][0]}: {fault['msg']}") from error
    _decide(home, registry, revoked, now=now)


def _decide(home: OwnerHome, registry: Registry, change: Change, *, now: datetime) -> None:
    """Adds a line to the registry, and to the audit log every line of the registry that it does not have yet."""
    log = AuditLog(home.audit_log)
    with registry.writing():
        registry.append(change)
        recorded = [event.entry.body.get("number", 0) for event in log.events() if event.entry.type == REGISTRY_EVENT]
        for line in read_changes(home.registry)[max(recorded, default=1) :]:
            log.append(REGISTRY_EVENT, _summary(line), now=now)


def _summary(line: ChainLine[Entry]) -> dict[str, Json]:
    """What the audit log says of a line of the registry: its SHA-256, which stands for it and all before, and words."""
    said = line.entry.model_dump(mode="json", include={"organisation", "from_round", "reason"})
    return {"change": line.entry.type, "number": line.number, "sha256": line.sha256, **said}


def _admission(
    home: OwnerHome,
    organisation: str,
    receiver: Applicant | Member,
    certificate: x509.Certificate,
    addresses: Addresses,
    *,
    now: datetime,
) -> bytes:
    contents = AdmissionContents(
        authority=(home.authority / AUTHORITY_CERTIFICATE).read_bytes(),
        certificate=certificate.public_bytes(Encoding.PEM),
        distribution=addresses.distribution,
        fleet=addresses.fleet,
        repository_root=_newest_root(home),
    )
    return write_admission(
        contents,
        organisation=organisation,
        request_sha256=receiver.request_sha256,
        recipient=receiver.recipient,
        owner=load_signing_key(home.owner_key),
        now=now,
    )


def _newest_root(home: OwnerHome) -> bytes:
    """Returns the repository's newest root metadata, from which a member finds every later one."""
    repository = home.root / REPOSITORY_DIRECTORY
    path = repository / metadata_file(Role.ROOT, last_version(repository, Role.ROOT))
    return read_small_file(path, MAX_METADATA_BYTES)


def check_addresses(home: OwnerHome, addresses: Addresses) -> None:
    """Checks that members will find the server's certificate good at the addresses they are given.

    Raises:
        InputError: an address is none, or not of the certificate's hosts; or the home has no certificate.
    """
    hosts = hosts_of(read_certificate(home.authority / SERVER_CERTIFICATE))
    for address in (addresses.distribution, addresses.fleet):
        host = _host_of(address)
        if host not in hosts:
            raise InputError(
                f"{address}: the server's certificate is for {', '.join(hosts)}. For another host run `scaleot "
                f"authority renew {home.root} --host {host}`, with every host that is used"
            )


def _host_of(address: str) -> str:
    try:
        _ADDRESS.validate_python(address)
    except ValidationError as error:
        raise InputError(
            f"address {address[:80]!r}: expected HOST:PORT, for example scaleot.example.org:9443"
        ) from error
    host = address.rpartition(":")[0]
    return str(ip_address(host[1:-1])) if host.startswith("[") else host
