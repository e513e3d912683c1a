"""A slow, literal transcription of C2SP chunked-encryption@v1 (c2sp.org/chunked-encryption) for Cobblestone-256.

It keeps sealed bundles readable should the library's interface ever move, and checks the library against the text.
"""

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

CHUNK_BYTES = 16 * 1024
TAG_BYTES = 16


def reference_decrypt(key: bytes, context: bytes, ciphertext: bytes) -> bytes:
    """Returns the plaintext; raises ``ValueError`` or ``InvalidTag`` for anything that is not a whole message."""
    salt, commitment, body = ciphertext[:24], ciphertext[24:56], ciphertext[56:]
    info = b"c2sp.org/chunked-encryption@v1+" + b"AEAD_AES_256_GCM" + b"\0" + salt + context
    derived = HKDFExpand(SHA512(), length=32 + 12 + 32, info=info).derive(key)
    chunk_key, base_nonce, expected_commitment = derived[:32], derived[32:44], derived[44:]
    if commitment != expected_commitment:
        raise ValueError("the commitment does not match")
    plaintext, counter = b"", 0
    while True:
        chunk, body = body[: CHUNK_BYTES + TAG_BYTES], body[CHUNK_BYTES + TAG_BYTES :]
        nonce = (int.from_bytes(base_nonce, "big") ^ counter).to_bytes(12, "big")
        opened = AESGCM(chunk_key).decrypt(nonce, chunk, None)
        plaintext, counter = plaintext + opened, counter + 1
        if len(opened) < CHUNK_BYTES:
            break
    if body:
        raise ValueError("bytes after the last chunk")
    return plaintext
