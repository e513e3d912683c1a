"""The keys of both sides: a signing key signs, an identity opens; verifying key and recipient are their public halves.

Both are hybrids: a signature counts only if Ed25519 *and* ML-DSA-65 (FIPS 204) agree, and a data key is wrapped to
X25519 *and* ML-KEM-768 (FIPS 203) at once, by the X-Wing combiner. Either half may fall and the other still holds.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

from cryptography.cobblestone import Cobblestone256Encryptor
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

DATA_KEY_BYTES = 32
HPKE_SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
"""By which anything is sealed to a recipient."""


def _key_id(key: Ed25519PublicKey | MLDSA65PublicKey) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


@dataclass(frozen=True)
class VerifyingKey:
    """What one pins to know another's signatures; not secret, but it must come by a trusted way."""

    ed25519: Ed25519PublicKey
    mldsa65: MLDSA65PublicKey

    @cached_property
    def key_ids(self) -> tuple[str, str]:
        """The SHA-256 of each key's SubjectPublicKeyInfo, in hexadecimal: Ed25519 first, then ML-DSA-65."""
        return _key_id(self.ed25519), _key_id(self.mldsa65)


@dataclass(frozen=True, eq=False, repr=False)
class SigningKey:
    """What the model owner, or an organisation, signs with. No ``repr`` shows it."""

    ed25519: Ed25519PrivateKey
    mldsa65: MLDSA65PrivateKey

    @cached_property
    def public(self) -> VerifyingKey:
        """The public half."""
        return VerifyingKey(self.ed25519.public_key(), self.mldsa65.public_key())


@dataclass(frozen=True)
class Recipient:
    """The public half of a data owner's identity: what a grant is sealed to."""

    mlkem768: MLKEM768PublicKey
    x25519: X25519PublicKey

    @property
    def hpke_key(self) -> hpke.MLKEM768X25519PublicKey:
        """The X-Wing public key."""
        return hpke.MLKEM768X25519PublicKey(self.mlkem768, self.x25519)


@dataclass(frozen=True, eq=False, repr=False)
class Identity:
    """What a data owner opens its grants with. No ``repr`` shows it."""

    mlkem768: MLKEM768PrivateKey
    x25519: X25519PrivateKey

    @cached_property
    def recipient(self) -> Recipient:
        """The public half."""
        return Recipient(self.mlkem768.public_key(), self.x25519.public_key())

    @property
    def hpke_key(self) -> hpke.MLKEM768X25519PrivateKey:
        """The X-Wing private key."""
        return hpke.MLKEM768X25519PrivateKey(self.mlkem768, self.x25519)


class DataKey:
    """The 32-byte key that one bundle is encrypted with.

    No ``repr`` shows it; it is no dataclass, since tools that print the fields of one do so unasked. Python cannot
    promise to wipe it from memory: it lives as long as the last object that holds it.
    """

    __slots__ = ("secret",)

    def __init__(self, secret: bytes) -> None:
        self.secret = secret

    def __reduce__(self) -> NoReturn:
        raise TypeError("a data key is not pickled: it would leave the process in clear")


def generate_signing_key() -> SigningKey:
    """Returns a fresh signing key from the operating system's randomness."""
    return SigningKey(Ed25519PrivateKey.generate(), MLDSA65PrivateKey.generate())


def generate_identity() -> Identity:
    """Returns a fresh identity from the operating system's randomness."""
    return Identity(MLKEM768PrivateKey.generate(), X25519PrivateKey.generate())


def generate_data_key() -> DataKey:
    """Returns a fresh data key from the operating system's randomness."""
    return DataKey(Cobblestone256Encryptor.generate_key())
