"""The two keys of an organisation that other programs use: Flower's node key and that of its TLS certificate.

Both are EC keys on P-384, since SuperNode and TLS know no hybrids: they guard the connection, and what is said over it
is signed and sealed by the keys of ``scaleot_core.bundle``.
"""

import base64
from typing import Annotated

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import NameOID
from pydantic import AfterValidator, PlainSerializer, PlainValidator, StringConstraints, TypeAdapter

from scaleot_core.bundle.canonical import Base64, Json
from scaleot_core.errors import VerificationError

MEMBER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MemberName = Annotated[str, StringConstraints(pattern=MEMBER_NAME)]
"""An organisation's name as its certificate has it: at most 64 characters, none that looks like another."""

_BASE64: TypeAdapter[bytes] = TypeAdapter(Base64)


def generate_transport_key() -> EllipticCurvePrivateKey:
    """Returns a fresh key from the operating system's randomness."""
    return generate_private_key(SECP384R1())


def node_private_bytes(key: EllipticCurvePrivateKey) -> bytes:
    """Returns what SuperNode's ``--auth-supernode-private-key`` reads."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def node_public_line(key: EllipticCurvePrivateKey) -> str:
    """Returns what ``flwr supernode register`` reads: ``ecdsa-sha2-nistp384 ...`` without a comment."""
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def tls_private_bytes(key: EllipticCurvePrivateKey) -> bytes:
    """Returns the key in PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def request_certificate(key: EllipticCurvePrivateKey, organisation: str) -> bytes:
    """Returns a certificate request (PKCS#10, DER) with the organisation as its common name."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, organisation)])
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, SHA384()).public_bytes(Encoding.DER)


def read_certificate_request(data: bytes, organisation: str) -> EllipticCurvePublicKey:
    """Returns the public key that an organisation wants a certificate for, and whose private half it has.

    Nothing else of the request is looked at: what the certificate says is the authority's affair.

    Raises:
        VerificationError: ``enrolment.tls``.
    """
    try:
        request = x509.load_der_x509_csr(data)
        key, names = request.public_key(), [(name.oid, name.value) for name in request.subject]
        is_signed = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm) as error:
        raise VerificationError("enrolment.tls", "expected a certificate request, PKCS#10 in DER") from error
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
        raise VerificationError("enrolment.tls", "expected a certificate request of an EC key on P-384")
    if not is_signed or names != [(NameOID.COMMON_NAME, organisation)]:
        raise VerificationError(
            "enrolment.tls",
            f"expected a certificate request signed by its own key, with {organisation!r} alone as name",
        )
    return key


def _read_tls_key(value: Json) -> EllipticCurvePublicKey:
    if isinstance(value, EllipticCurvePublicKey):  # built by our own code
        return value
    data = _BASE64.validate_python(value)
    try:
        key = load_der_public_key(data)
    except UnsupportedAlgorithm as error:
        raise ValueError("expected an EC key") from error
    if not isinstance(key, EllipticCurvePublicKey) or _tls_public_bytes(key) != data:
        raise ValueError("expected the SubjectPublicKeyInfo of an EC key, in DER")
    return key


def _tls_public_bytes(key: EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _write_tls_key(key: EllipticCurvePublicKey) -> str:
    return base64.b64encode(_tls_public_bytes(key)).decode()


TlsKeyField = Annotated[EllipticCurvePublicKey, PlainValidator(_read_tls_key), PlainSerializer(_write_tls_key)]
"""The public key of a TLS certificate."""


def _check_node_key(line: str) -> str:
    try:
        key = load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("expected an OpenSSH public key") from error
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
        raise ValueError("expected an ecdsa-sha2-nistp384 key")  # noqa: TRY004 (pydantic reports only ValueError)
    if key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() != line:
        raise ValueError("expected one line of type and key, without a comment")
    return line


NodeKeyField = Annotated[str, AfterValidator(_check_node_key)]
"""A node's public key as ``node_public_line`` writes it."""
