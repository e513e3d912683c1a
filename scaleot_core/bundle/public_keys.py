"""Public keys as fields of documents: the raw bytes of each half, in base64, so that one key has one spelling."""

from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from pydantic import PlainSerializer, PlainValidator

from scaleot_core.bundle.canonical import Base64, Document, Json
from scaleot_core.bundle.keys import Recipient, VerifyingKey


class _VerifyingKeyHalves(Document):
    ed25519: Base64
    mldsa65: Base64


class _RecipientHalves(Document):
    mlkem768: Base64
    x25519: Base64


def _read_verifying_key(value: Json) -> VerifyingKey:
    if isinstance(value, VerifyingKey):  # built by our own code
        return value
    halves = _VerifyingKeyHalves.model_validate(value)
    return VerifyingKey(
        Ed25519PublicKey.from_public_bytes(halves.ed25519), MLDSA65PublicKey.from_public_bytes(halves.mldsa65)
    )


def _write_verifying_key(key: VerifyingKey) -> Json:
    halves = _VerifyingKeyHalves(ed25519=key.ed25519.public_bytes_raw(), mldsa65=key.mldsa65.public_bytes_raw())
    return halves.model_dump(mode="json")


def _read_recipient(value: Json) -> Recipient:
    if isinstance(value, Recipient):  # as above
        return value
    halves = _RecipientHalves.model_validate(value)
    return Recipient(
        MLKEM768PublicKey.from_public_bytes(halves.mlkem768), X25519PublicKey.from_public_bytes(halves.x25519)
    )


def _write_recipient(recipient: Recipient) -> Json:
    halves = _RecipientHalves(
        mlkem768=recipient.mlkem768.public_bytes_raw(), x25519=recipient.x25519.public_bytes_raw()
    )
    return halves.model_dump(mode="json")


VerifyingKeyField = Annotated[VerifyingKey, PlainValidator(_read_verifying_key), PlainSerializer(_write_verifying_key)]
"""``{"ed25519", "mldsa65"}``."""
RecipientField = Annotated[Recipient, PlainValidator(_read_recipient), PlainSerializer(_write_recipient)]
"""``{"mlkem768", "x25519"}``."""
