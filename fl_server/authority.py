"""The model owner's own certificate authority: one server's certificate, and one for every member.

It vouches for nothing but the two services of one federation. It issues end certificates alone (path length 0), for
servers or for clients and never for both, so that no member can pose as the server. It has no name constraints: a
list of today's host names in it would make every member enrol anew for tomorrow's.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from secrets import token_hex

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from scaleot_core.bundle.files import new_directory, replace_file, write_synced
from scaleot_core.bundle.key_files import read_private_file
from scaleot_core.enrolment.transport_keys import generate_transport_key, tls_private_bytes
from scaleot_core.errors import InputError

AUTHORITY_CERTIFICATE, AUTHORITY_KEY = "authority.pem", "authority.key"
SERVER_CERTIFICATE, SERVER_KEY = "server.pem", "server.key"
AUTHORITY_LIFETIME = timedelta(days=5 * 365)
LEAF_LIFETIME = timedelta(days=90)
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
"""Stand in every server's certificate: the owner's own tools ask the services from the same machine."""

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_CLOCK_SKEW = timedelta(hours=1)
"""A certificate counts a little earlier than it is made, for clients whose clock is slow."""
_SECRET, _PUBLIC = 0o600, 0o644


@dataclass(frozen=True, eq=False, repr=False)
class Authority:
    """Certificate and private key of an authority that may issue now. No ``repr`` shows it."""

    certificate: x509.Certificate
    private_key: EllipticCurvePrivateKey


def create_authority(directory: Path, hosts: Sequence[str], *, now: datetime) -> None:
    """Makes an authority for five years, and a server's certificate for the hosts and loopback, in a new directory.

    Raises:
        InputError: a host is neither a host name nor an address.
        OutputError: the directory exists already or cannot be written.
    """
    names = _host_names(hosts)
    key, name = generate_transport_key(), _common_name(f"ScaleOT authority {token_hex(8)}")
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(name, name, key.public_key(), now, now + AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, SHA384())
    )
    server_key = generate_transport_key()
    server = _issue_to_server(Authority(certificate, key), names, server_key.public_key(), now)
    with new_directory(directory) as building:
        building.chmod(0o700)
        write_synced(building / AUTHORITY_KEY, tls_private_bytes(key), mode=_SECRET)
        write_synced(building / AUTHORITY_CERTIFICATE, certificate.public_bytes(Encoding.PEM), mode=_PUBLIC)
        write_synced(building / SERVER_KEY, tls_private_bytes(server_key), mode=_SECRET)
        write_synced(building / SERVER_CERTIFICATE, server.public_bytes(Encoding.PEM), mode=_PUBLIC)


def load_authority(directory: Path, *, now: datetime) -> Authority:
    """Reads an authority that may issue certificates.

    Raises:
        InputError: a file is missing or no such PEM, others may read the key, key and certificate do not belong
            together, or the authority is not valid now.
    """
    path = directory / AUTHORITY_KEY
    pem = read_private_file(path)
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(f"{path}: expected an unencrypted private key in PEM") from error
    certificate = read_certificate(directory / AUTHORITY_CERTIFICATE)
    if not isinstance(key, EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise InputError(f"{path} is not the private key of {directory / AUTHORITY_CERTIFICATE}")
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        raise InputError(
            f"the authority {directory / AUTHORITY_CERTIFICATE} is valid from {certificate.not_valid_before_utc} to "
            f"{certificate.not_valid_after_utc}, and it is {now}: set the clock, or make a new home with `scaleot "
            "keygen`, in which every organisation enrols anew"
        )
    return Authority(certificate, key)


def issue_to_member(
    authority: Authority, organisation: str, key: EllipticCurvePublicKey, *, now: datetime
) -> x509.Certificate:
    """Returns a client's certificate of 90 days whose common name is the organisation's name."""
    builder = _leaf_builder(authority, _common_name(organisation), key, now, ExtendedKeyUsageOID.CLIENT_AUTH)
    return builder.sign(authority.private_key, SHA384())


def renew_server(directory: Path, hosts: Sequence[str], *, now: datetime) -> x509.Certificate:
    """Replaces the server's certificate by one of 90 days for the same key, and for other hosts if some are given.

    Services take it up while they run; the SuperLink has to start anew, which ``serve`` sees to. Raises as
    ``load_authority`` and ``create_authority``.
    """
    authority = load_authority(directory, now=now)
    present = read_certificate(directory / SERVER_CERTIFICATE)
    key = present.public_key()
    if not isinstance(key, EllipticCurvePublicKey):
        raise InputError(f"{directory / SERVER_CERTIFICATE}: expected the certificate of an EC key")
    names = _host_names(hosts) if hosts else _alternative_names(present)
    certificate = _issue_to_server(authority, names, key, now)
    replace_file(directory / SERVER_CERTIFICATE, certificate.public_bytes(Encoding.PEM), mode=_PUBLIC)
    return certificate


def read_certificate(path: Path) -> x509.Certificate:
    """Returns the first certificate of a PEM file; raises ``InputError`` if there is none."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a certificate in PEM: {error}") from error


def hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """Returns the host names and addresses that a server's certificate is for."""
    return tuple(str(name.value) for name in _alternative_names(certificate))


def fingerprint_of(certificate: x509.Certificate) -> str:
    """Returns the SHA-256 of a certificate in DER, in hexadecimal."""
    return certificate.fingerprint(SHA256()).hex()


def _issue_to_server(
    authority: Authority, names: x509.SubjectAlternativeName, key: EllipticCurvePublicKey, now: datetime
) -> x509.Certificate:
    builder = _leaf_builder(authority, _common_name("ScaleOT server"), key, now, ExtendedKeyUsageOID.SERVER_AUTH)
    return builder.add_extension(names, critical=False).sign(authority.private_key, SHA384())


def _leaf_builder(
    authority: Authority, name: x509.Name, key: EllipticCurvePublicKey, now: datetime, usage: x509.ObjectIdentifier
) -> x509.CertificateBuilder:
    end = min(now + LEAF_LIFETIME, authority.certificate.not_valid_after_utc)
    identifier = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        _builder(name, authority.certificate.subject, key, now, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )


def _builder(
    name: x509.Name, issuer: x509.Name, key: EllipticCurvePublicKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(end)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host_names(hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([_host_name(host) for host in dict.fromkeys((*hosts, *LOOPBACK_HOSTS))])


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        pass
    if len(host) > 253 or not _HOST_NAME.fullmatch(host):
        raise InputError(
            f"host {host[:80]!r}: expected a host name such as scaleot.example.org, in ASCII and without a port, or an "
            "address"
        )
    return x509.DNSName(host)


def _alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise InputError("the server's certificate names no host; give them with --host") from error
