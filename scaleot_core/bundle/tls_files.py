"""The PEM files of one end of a mutual TLS connection, checked before anything is sent or listened to.

TLS libraries report a wrong file as a failed handshake, minutes later and at the other end; here it is named.
"""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from scaleot_core.bundle.files import open_regular_file
from scaleot_core.bundle.key_files import read_private_file
from scaleot_core.errors import InputError

MAX_CERTIFICATE_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class TlsFiles:
    """Where the PEM files of one end lie."""

    certificate: Path
    """This end's own, the leaf first, then any intermediate ones."""
    private_key: Path
    """Of that certificate; PKCS#8 or the older forms, not encrypted, mode 0600."""
    authority: Path
    """The certificates that the other end's must descend from."""


@dataclass(frozen=True)
class TlsCredentials:
    """The contents of ``TlsFiles``."""

    certificate: bytes
    private_key: bytes = field(repr=False)
    authority: bytes


def read_tls_files(files: TlsFiles, *, now: datetime) -> TlsCredentials:
    """Reads the files; ``now`` carries a time zone.

    Raises ``InputError`` if one cannot be read or is no PEM, if others may read the private key, if key and certificate
    do not belong together, or if the certificate is not valid now.
    """
    private_key = read_private_file(files.private_key)
    credentials = TlsCredentials(_read(files.certificate), private_key, _read(files.authority))
    leaf, *_ = _certificates(credentials.certificate, files.certificate)
    _certificates(credentials.authority, files.authority)
    _check_belongs_together(leaf, private_key, files)
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        raise InputError(
            f"certificate {files.certificate} is valid from {leaf.not_valid_before_utc} to {leaf.not_valid_after_utc}, "
            f"and it is {now}: have a new one issued, or set the clock"
        )
    return credentials


def _read(path: Path) -> bytes:
    try:
        with open_regular_file(path) as file:
            data = file.read(MAX_CERTIFICATE_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"certificate file {path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_CERTIFICATE_FILE_BYTES:
        raise InputError(f"certificate file {path} is over {MAX_CERTIFICATE_FILE_BYTES} bytes")
    return data


def _certificates(pem: bytes, path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise InputError(f"{path}: expected certificates in PEM, got something else") from error


def _check_belongs_together(leaf: x509.Certificate, private_key: bytes, files: TlsFiles) -> None:
    der = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    try:
        of_key = load_pem_private_key(private_key, None).public_key().public_bytes(*der)
        of_certificate = leaf.public_key().public_bytes(*der)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(f"{files.private_key}: expected an unencrypted private key in PEM") from error
    if of_key != of_certificate:
        raise InputError(f"{files.private_key} is not the private key of {files.certificate}")
