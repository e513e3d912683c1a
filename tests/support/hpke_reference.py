"""A literal transcription of RFC 9180 base mode with the X-Wing KEM, HKDF-SHA256 and AES-256-GCM, for one message.

It shows that a grant can be opened from its specification alone.
"""

import hashlib
import hmac

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from scaleot_core.bundle import Identity

SUITE_ID = b"HPKE" + bytes.fromhex("647a00010002")  # KEM X-Wing, KDF HKDF-SHA256, AEAD AES-256-GCM
XWING_LABEL = rb"\.//^" + b"\\"


def xwing_decapsulate(encapsulated: bytes, identity: Identity) -> bytes:
    """draft-connolly-cfrg-xwing-kem, section 5.4: both secrets, and X25519's transcript, through SHA3-256."""
    mlkem_ciphertext, x25519_ciphertext = encapsulated[:1088], encapsulated[1088:]
    mlkem_secret = identity.mlkem768.decapsulate(mlkem_ciphertext)
    x25519_secret = identity.x25519.exchange(X25519PublicKey.from_public_bytes(x25519_ciphertext))
    x25519_public = identity.x25519.public_key().public_bytes_raw()
    transcript = mlkem_secret + x25519_secret + x25519_ciphertext + x25519_public + XWING_LABEL
    return hashlib.sha3_256(transcript).digest()


def labeled_extract(salt: bytes, label: bytes, key_material: bytes) -> bytes:
    return hmac.digest(salt, b"HPKE-v1" + SUITE_ID + label + key_material, "sha256")


def labeled_expand(key: bytes, label: bytes, info: bytes, length: int) -> bytes:
    labeled = length.to_bytes(2, "big") + b"HPKE-v1" + SUITE_ID + label + info
    return hmac.digest(key, labeled + b"\x01", "sha256")[:length]  # one round of HKDF-Expand gives 32 bytes


def reference_open(sealed: bytes, identity: Identity, info: bytes) -> bytes:
    """RFC 9180, sections 5.1 and 6.1: SetupBaseR, then one Open with an empty ``aad``."""
    shared_secret = xwing_decapsulate(sealed[:1120], identity)
    context = b"\x00" + labeled_extract(b"", b"psk_id_hash", b"") + labeled_extract(b"", b"info_hash", info)
    secret = labeled_extract(shared_secret, b"secret", b"")
    key, nonce = labeled_expand(secret, b"key", context, 32), labeled_expand(secret, b"base_nonce", context, 12)
    return AESGCM(key).decrypt(nonce, sealed[1120:], None)
