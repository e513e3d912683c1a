"""Signed statements: DSSE envelopes that two signatures must agree on.

The DSSE protocol v1.0.2 (github.com/secure-systems-lab/dsse), narrower in one way: an envelope has exactly the two
signatures of one signing key, and its bytes are canonical JSON. So it has no unsigned byte that could be changed, and a
statement is read only after both signatures hold.
"""

from typing import Annotated

from cryptography.exceptions import InvalidSignature
from pydantic import Field

from scaleot_core.bundle.canonical import Base64, Document, Kind, Sha256, read_document, write_document
from scaleot_core.bundle.keys import SigningKey, VerifyingKey
from scaleot_core.errors import VerificationError


class Signature(Document):
    """One signature of an envelope."""

    keyid: Sha256
    sig: Base64


class Envelope(Document):
    """A DSSE envelope; the names of its fields are DSSE's own."""

    payload: Base64
    payloadType: str  # noqa: N815 (DSSE's name)
    signatures: Annotated[tuple[Signature, ...], Field(min_length=2, max_length=2)]


def sign_statement(statement: bytes, payload_type: str, key: SigningKey) -> bytes:
    """Returns the envelope of a statement, signed by both halves of a signing key."""
    message = _message_to_sign(statement, payload_type)
    signatures = (key.ed25519.sign(message), key.mldsa65.sign(message))
    signed = tuple(Signature(keyid=key_id, sig=sig) for key_id, sig in zip(key.public.key_ids, signatures, strict=True))
    return write_document(Envelope(payload=statement, payloadType=payload_type, signatures=signed))


def verify_statement(
    envelope: bytes, payload_type: str, signer: VerifyingKey, *, kind: Kind, limit_bytes: int
) -> bytes:
    """Returns the statement of an envelope that both halves of a signing key have signed.

    Raises ``VerificationError``: ``.size``, ``.json``, ``.fields`` for bytes that are no such envelope,
    ``.signature`` for another payload type, another signer, or a signature that does not hold.
    """
    parsed = read_document(Envelope, envelope, kind=kind, limit_bytes=limit_bytes)
    if parsed.payloadType != payload_type:
        raise VerificationError(f"{kind}.signature", f"expected a signed {payload_type}, got another kind of statement")
    if tuple(signature.keyid for signature in parsed.signatures) != signer.key_ids:
        raise VerificationError(f"{kind}.signature", "signed by another key than the pinned one")
    message = _message_to_sign(parsed.payload, parsed.payloadType)
    try:
        signer.ed25519.verify(parsed.signatures[0].sig, message)
        signer.mldsa65.verify(parsed.signatures[1].sig, message)
    except (InvalidSignature, ValueError) as error:
        raise VerificationError(f"{kind}.signature", "the two signatures do not both hold") from error
    return parsed.payload


def _message_to_sign(statement: bytes, payload_type: str) -> bytes:
    """DSSE's pre-authentication encoding: binds the kind of statement and both lengths into what is signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(statement), statement)
