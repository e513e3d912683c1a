"""The objects of a bundle: one file each, encrypted as one stream and signed by the SHA-256 of each of its blocks.

Encryption is Cobblestone-256 (C2SP chunked-encryption, AES-256-GCM): the key commits, the context ties a stream to its
bundle and place, and a stream cut at a chunk's end is refused, but only at the end. So nobody may use a plaintext
before ``decrypt_object`` has returned.
"""

import hashlib
import os
from collections.abc import Generator, Iterable
from io import BufferedIOBase, BufferedReader, BytesIO
from pathlib import Path

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag

from scaleot_core.bundle.canonical import write_document
from scaleot_core.bundle.files import open_regular_file
from scaleot_core.bundle.keys import DataKey
from scaleot_core.bundle.manifest import (
    BLOCK_BYTES,
    InnerFile,
    InnerManifest,
    OuterManifest,
    SealedObject,
    object_context,
    read_inner_manifest,
)
from scaleot_core.errors import VerificationError

PIECE_BYTES = 256 * 1024
"""What is read, encrypted, hashed and written at a time: little enough to stay in a core's own cache meanwhile."""


class BlockDigests:
    """The digests of a ciphertext that passes by, of each block of 16 MiB."""

    def __init__(self) -> None:
        self._block = hashlib.sha256()
        self._blocks: list[str] = []
        self._size = 0

    def update(self, data: bytes) -> None:
        """Takes the next bytes, of any number."""
        rest = memoryview(data)
        while rest:
            taken = rest[: BLOCK_BYTES - self._size % BLOCK_BYTES]
            self._block.update(taken)
            self._size += len(taken)
            rest = rest[len(taken) :]
            if self._size % BLOCK_BYTES == 0:
                self._blocks.append(self._block.hexdigest())
                self._block = hashlib.sha256()

    def finish(self) -> SealedObject:
        """Returns the object's entry in the manifest."""
        last = [self._block.hexdigest()] if self._size % BLOCK_BYTES else []
        return SealedObject(blocks=(*self._blocks, *last), size=self._size)


def encrypt_manifest(inner: InnerManifest, key: DataKey, bundle_id: str) -> bytes:
    """Returns the inner manifest as a stream, object 0; raises ``ValueError`` if the model is no JSON."""
    encryptor = Cobblestone256Encryptor(key.secret, object_context(bundle_id, 0))
    return encryptor.update(write_document(inner)) + encryptor.finalize()


def decrypt_manifest(outer: OuterManifest, key: DataKey) -> InnerManifest:
    """Returns the inner manifest; raises ``VerificationError`` (``object.decrypt`` for another key, ``inner.*``)."""
    sink = BytesIO()
    decrypt_object([memoryview(outer.inner)], key, object_context(outer.bundle_id, 0), sink)
    return read_inner_manifest(sink.getvalue(), outer.objects)


def encrypt_object(
    source: BufferedIOBase, sink: BufferedIOBase, key: DataKey, context: bytes, *, name: str, index: int
) -> tuple[InnerFile, SealedObject]:
    """Encrypts a file from ``source`` to ``sink`` and returns its entries in the inner and the outer manifest.

    Memory is bounded by a few pieces. The entries are about the bytes that went through, whatever becomes of the file.
    """
    encryptor = Cobblestone256Encryptor(key.secret, context)
    ciphertext, size = BlockDigests(), 0
    while piece := source.read(PIECE_BYTES):
        size += len(piece)
        encrypted = encryptor.update(piece)
        ciphertext.update(encrypted)
        sink.write(encrypted)
    encrypted = encryptor.finalize()
    ciphertext.update(encrypted)
    sink.write(encrypted)
    return InnerFile(name=name, object=index, size=size), ciphertext.finish()


def read_blocks(directory: Path, sealed: SealedObject) -> Generator[memoryview, None, None]:
    """Yields an object's ciphertext block by block, each one compared with its signed digest before it is given out.

    A block is valid until the next one is asked for; who stops early closes the generator. Raises
    ``VerificationError``: ``object.missing`` if the file cannot be read, ``object.size`` and ``object.block`` if it is
    not what was signed.
    """
    name = sealed.name
    try:
        with open_regular_file(directory / name) as file:
            size = os.fstat(file.fileno()).st_size
            if size != sealed.size:
                raise VerificationError("object.size", f"object {name}: expected {sealed.size} bytes, got {size}")
            buffer = memoryview(bytearray(min(BLOCK_BYTES, sealed.size)))
            for index, digest in enumerate(sealed.blocks):
                block = buffer[: sealed.block_size(index)]
                if _read_block(file, block) != digest:
                    raise VerificationError("object.block", f"object {name}, block {index}: not what the owner signed")
                yield block
    except OSError as error:
        raise VerificationError("object.missing", f"object {name} cannot be read: {error.strerror}") from error


def _read_block(file: BufferedReader, block: memoryview) -> str:
    """Fills a block from a file and returns its SHA-256.

    Hashed is what is in memory afterwards, also where the file ended too soon: no other bytes are ever decrypted. Each
    piece is hashed while the processor's cache still has it.
    """
    digest = hashlib.sha256()
    for start in range(0, len(block), PIECE_BYTES):
        piece = block[start : start + PIECE_BYTES]
        file.readinto(piece)
        digest.update(piece)
    return digest.hexdigest()


def decrypt_object(blocks: Iterable[memoryview], key: DataKey, context: bytes, sink: BufferedIOBase) -> None:
    """Decrypts a stream to ``sink``; until it returns, nothing of the plaintext is valid.

    Raises ``VerificationError`` (``object.decrypt``) for another key, another context, and any changed, reordered,
    missing or added chunk.
    """
    decryptor = Cobblestone256Decryptor(key.secret, context)
    try:
        for block in blocks:
            for start in range(0, len(block), PIECE_BYTES):
                sink.write(decryptor.update(block[start : start + PIECE_BYTES]))
        sink.write(decryptor.finalize())
    except InvalidTag as error:
        raise VerificationError(
            "object.decrypt", "a ciphertext does not decrypt: changed, cut or another key"
        ) from error
