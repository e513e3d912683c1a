"""The admission: what the model owner gives an organisation that it approved, for that organisation alone.

It is signed by the owner over everything, and its inside is sealed to the organisation's identity by HPKE, as a grant
is. So whoever uses the certificate in it could open it: the first connection with that certificate shows the owner that
the organisation holds its identity and its TLS key. Name and request are bound into both signature and encryption.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from cryptography.exceptions import InvalidTag
from pydantic import StringConstraints

from scaleot_core.bundle.canonical import Base64, Document, Instant, Sha256, read_document, write_document
from scaleot_core.bundle.envelope import Envelope, sign_statement, verify_statement
from scaleot_core.bundle.keys import HPKE_SUITE, Identity, Recipient, SigningKey, VerifyingKey
from scaleot_core.bundle.public_keys import VerifyingKeyField
from scaleot_core.enrolment.transport_keys import MemberName
from scaleot_core.errors import VerificationError

ADMISSION_TYPE = "application/vnd.scaleot.admission+json"
MAX_ADMISSION_BYTES = 2 * 1024 * 1024

Address = Annotated[str, StringConstraints(pattern=r"^(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9.-]{1,253}):[0-9]{1,5}$")]
"""``host:port``; an IPv6 address stands in brackets."""


class AdmissionContents(Document):
    """The sealed part: what the organisation needs to take part."""

    authority: Base64
    """The certificate authority of both services, in PEM."""
    certificate: Base64
    """The organisation's own, in PEM."""
    distribution: Address
    fleet: Address
    repository_root: Base64
    """The root metadata of the owner's repository."""


class Terms(Document):
    """What an admission says in clear, and what its encryption is bound to."""

    issued: Instant
    organisation: MemberName
    owner: VerifyingKeyField
    request_sha256: Sha256


class Admission(Document):
    """The signed text of an admission."""

    enc: Base64
    issued: Instant
    organisation: MemberName
    owner: VerifyingKeyField
    request_sha256: Sha256
    type: Literal["scaleot.admission/1"] = "scaleot.admission/1"


@dataclass(frozen=True)
class SignedAdmission:
    """An admission that the owner it names has signed; whether that is the right owner, its fingerprint has to show."""

    terms: Terms
    sealed: bytes

    @property
    def owner(self) -> VerifyingKey:
        """The key that the organisation is asked to pin."""
        return self.terms.owner


def write_admission(
    contents: AdmissionContents,
    *,
    organisation: str,
    request_sha256: str,
    recipient: Recipient,
    owner: SigningKey,
    now: datetime,
) -> bytes:
    """Returns the admission of an organisation, to be sent by any way.

    Raises:
        VerificationError: ``key.recipient`` for a public key that nothing can be sealed to.
    """
    issued = now.replace(microsecond=0)
    terms = Terms(issued=issued, organisation=organisation, owner=owner.public, request_sha256=request_sha256)
    try:
        sealed = HPKE_SUITE.encrypt(write_document(contents), recipient.hpke_key, info=_binding(terms))
    except ValueError as error:
        raise VerificationError("key.recipient", f"nothing can be sealed to the key of {organisation}") from error
    admission = Admission(
        enc=sealed, issued=issued, organisation=organisation, owner=owner.public, request_sha256=request_sha256
    )
    return sign_statement(write_document(admission), ADMISSION_TYPE, owner)


def read_admission(envelope: bytes, *, organisation: str, request_sha256: str) -> SignedAdmission:
    """Returns the admission of this organisation's own request; its inside is still sealed.

    Raises:
        VerificationError: ``admission.size``, ``admission.json``, ``admission.fields`` for what is no admission,
            ``admission.signature`` if the owner it names did not sign it, ``admission.organisation`` for another's,
            ``admission.request`` for another request's.
    """
    claimed = read_document(Envelope, envelope, kind="admission", limit_bytes=MAX_ADMISSION_BYTES)
    stated = read_document(Admission, claimed.payload, kind="admission", limit_bytes=MAX_ADMISSION_BYTES)
    verify_statement(envelope, ADMISSION_TYPE, stated.owner, kind="admission", limit_bytes=MAX_ADMISSION_BYTES)
    if stated.organisation != organisation:
        raise VerificationError(
            "admission.organisation", f"expected an admission for {organisation}, got one for {stated.organisation}"
        )
    if stated.request_sha256 != request_sha256:
        raise VerificationError(
            "admission.request", "the admission answers another enrolment request than the one in this home"
        )
    terms = Terms(
        issued=stated.issued,
        organisation=stated.organisation,
        owner=stated.owner,
        request_sha256=stated.request_sha256,
    )
    return SignedAdmission(terms, stated.enc)


def open_admission(signed: SignedAdmission, identity: Identity) -> AdmissionContents:
    """Returns the inside of an admission whose owner's fingerprint was compared.

    Raises:
        VerificationError: ``admission.unwrap`` if it is sealed to another identity, and as ``read_admission`` for an
            inside that is none.
    """
    try:
        contents = HPKE_SUITE.decrypt(signed.sealed, identity.hpke_key, info=_binding(signed.terms))
    except (InvalidTag, ValueError) as error:
        raise VerificationError(
            "admission.unwrap", "the admission is not sealed to the identity of this home"
        ) from error
    return read_document(AdmissionContents, contents, kind="admission", limit_bytes=MAX_ADMISSION_BYTES)


def _binding(terms: Terms) -> bytes:
    """HPKE's ``info``: ties the sealed part to what the admission says in clear."""
    return b"scaleot.admission/1\0" + write_document(terms)
