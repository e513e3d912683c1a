"""The enrolment request: an organisation's public keys under its name, signed by itself.

The signature proves that one who holds the signing key put these keys together, and the certificate request that it
holds the key for TLS. That it is the organisation that the name says, only the fingerprint by telephone can show; that
it holds the identity, the admission shows, which nobody else can open.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from pydantic import TypeAdapter, ValidationError

from scaleot_core.bundle.canonical import Base64, Document, Instant, read_document, write_document
from scaleot_core.bundle.envelope import Envelope, sign_statement, verify_statement
from scaleot_core.bundle.keys import Recipient, SigningKey, VerifyingKey
from scaleot_core.bundle.public_keys import RecipientField, VerifyingKeyField
from scaleot_core.enrolment.transport_keys import (
    MemberName,
    NodeKeyField,
    node_public_line,
    read_certificate_request,
    request_certificate,
)
from scaleot_core.errors import InputError

ENROLMENT_TYPE = "application/vnd.scaleot.enrolment+json"
MAX_REQUEST_BYTES = 32 * 1024
_MEMBER_NAME: TypeAdapter[str] = TypeAdapter(MemberName)


class EnrolmentRequest(Document):
    """The signed text of a request."""

    created: Instant
    node_public_key: NodeKeyField
    organisation: MemberName
    recipient: RecipientField
    tls_request: Base64
    type: Literal["scaleot.enrolment/1"] = "scaleot.enrolment/1"
    verifying_key: VerifyingKeyField


@dataclass(frozen=True)
class Applicant:
    """An organisation as its request describes it; whether it is that organisation, the fingerprint has to show."""

    organisation: str
    verifying_key: VerifyingKey
    recipient: Recipient
    node_public_key: str
    tls_public_key: EllipticCurvePublicKey
    request_sha256: str
    created: datetime


def check_member_name(organisation: str) -> None:
    """Raises ``InputError`` for a name that no member of a federation can have."""
    try:
        _MEMBER_NAME.validate_python(organisation)
    except ValidationError as error:
        raise InputError(
            f"organisation {organisation[:80]!r}: expected 1 to 64 letters, digits, dots, hyphens and underscores of "
            "ASCII, of which the first is a letter or a digit"
        ) from error


def write_request(
    organisation: str,
    *,
    signing_key: SigningKey,
    recipient: Recipient,
    node_key: EllipticCurvePrivateKey,
    tls_key: EllipticCurvePrivateKey,
    now: datetime,
) -> bytes:
    """Returns the signed request of an organisation; raises ``InputError`` for a name that it cannot have."""
    check_member_name(organisation)
    request = EnrolmentRequest(
        created=now,
        node_public_key=node_public_line(node_key),
        organisation=organisation,
        recipient=recipient,
        tls_request=request_certificate(tls_key, organisation),
        verifying_key=signing_key.public,
    )
    return sign_statement(write_document(request), ENROLMENT_TYPE, signing_key)


def read_request(envelope: bytes) -> Applicant:
    """Returns who asks to be enrolled.

    Raises:
        VerificationError: ``enrolment.size``, ``enrolment.json``, ``enrolment.fields`` for what is no request,
            ``enrolment.signature`` if its own key did not sign it, ``enrolment.tls`` for its certificate request.
    """
    claimed = read_document(Envelope, envelope, kind="enrolment", limit_bytes=MAX_REQUEST_BYTES)
    request = read_document(EnrolmentRequest, claimed.payload, kind="enrolment", limit_bytes=MAX_REQUEST_BYTES)
    verify_statement(envelope, ENROLMENT_TYPE, request.verifying_key, kind="enrolment", limit_bytes=MAX_REQUEST_BYTES)
    return Applicant(
        organisation=request.organisation,
        verifying_key=request.verifying_key,
        recipient=request.recipient,
        node_public_key=request.node_public_key,
        tls_public_key=read_certificate_request(request.tls_request, request.organisation),
        request_sha256=hashlib.sha256(envelope).hexdigest(),
        created=request.created,
    )
