"""The two manifests of a sealed bundle, and the names its files may have.

The outer manifest is signed and readable by anyone: it says nothing of what is inside. The inner one is encrypted: it
holds the files' names and sizes and the model's description. ``FORMAT.md`` is the specification.
"""

import hashlib
import re
from functools import cached_property
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from scaleot_core.bundle.canonical import Base64, Document, Instant, Json, Sha256, parse_canonical, read_document
from scaleot_core.errors import VerificationError

FORMAT: Final = "scaleot.sealed/2"
SUITE: Final = "hpke-xwing-hkdfsha256-aes256gcm+cobblestone-256"
MANIFEST_TYPE = "application/vnd.scaleot.manifest+json"
MANIFEST_FILE = "manifest.dsse.json"
OBJECTS_DIRECTORY = "objects"

BLOCK_BYTES: Final = 16777216  # 16 MiB
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_ENVELOPE_BYTES = 6 * 1024 * 1024
MAX_FILES = 1000
MAX_INTEGER = 2**53 - 1

Size = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
BundleId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]

_NAME_DOMAIN = b"scaleot.object/2\0"
_NAME_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
_FILE_NAME = re.compile(rf"(?:{_NAME_PART}/){{0,2}}{_NAME_PART}")
_FILE_SUFFIXES = (".safetensors", ".json", ".txt")


class SealedObject(Document):
    """The ciphertext of one file: its size and the SHA-256 of each 16 MiB block, the last one shorter."""

    blocks: Annotated[tuple[Sha256, ...], Field(min_length=1)]
    size: Size

    @model_validator(mode="after")
    def _blocks_cover_the_size(self) -> "SealedObject":
        if len(self.blocks) != -(-self.size // BLOCK_BYTES):
            raise ValueError(f"{len(self.blocks)} block digests do not cover {self.size} bytes")
        return self

    @cached_property
    def name(self) -> str:
        """What the ciphertext is called wherever it lies: a SHA-256 over its size and its blocks' digests."""
        blocks = b"".join(bytes.fromhex(digest) for digest in self.blocks)
        return hashlib.sha256(_NAME_DOMAIN + self.size.to_bytes(8) + blocks).hexdigest()

    def block_size(self, index: int) -> int:
        """Returns the bytes of one block, counted from 0: 16 MiB, and of the last one the rest."""
        return min(BLOCK_BYTES, self.size - index * BLOCK_BYTES)


class OuterManifest(Document):
    """What is signed: the ciphertext and until when it may be used; nothing of the model."""

    block_size: Literal[16777216]
    bundle_id: BundleId
    format: Literal["scaleot.sealed/2"]
    inner: Base64
    not_after: Instant
    objects: Annotated[tuple[SealedObject, ...], Field(min_length=1, max_length=MAX_FILES)]
    suite: Literal["hpke-xwing-hkdfsha256-aes256gcm+cobblestone-256"]
    version: Annotated[int, Field(ge=1, le=MAX_INTEGER)]


class InnerFile(Document):
    """One file: its plaintext's name and size, and the number of the object that holds it, from 1."""

    name: str
    object: Annotated[int, Field(ge=1, le=MAX_FILES)]
    size: Size


class InnerManifest(Document):
    """What is encrypted: the files, and the model owner's description of the model."""

    files: Annotated[tuple[InnerFile, ...], Field(min_length=1, max_length=MAX_FILES)]
    model: dict[str, Json]


def read_outer_manifest(data: bytes) -> OuterManifest:
    """Returns the outer manifest that signed bytes hold.

    Raises ``VerificationError``: ``bundle.format`` for a format this version does not know, ``bundle.size``,
    ``bundle.json``, ``bundle.fields`` for anything that is not exactly one.
    """
    value = parse_canonical(data, kind="bundle", limit_bytes=MAX_MANIFEST_BYTES)
    stated = value.get("format") if isinstance(value, dict) else None
    if stated != FORMAT:
        raise VerificationError("bundle.format", f"expected a bundle of format {FORMAT}, got {str(stated)[:80]!r}")
    return read_document(OuterManifest, data, kind="bundle", limit_bytes=MAX_MANIFEST_BYTES)


def read_inner_manifest(data: bytes, objects: tuple[SealedObject, ...]) -> InnerManifest:
    """Returns the inner manifest that decrypted bytes hold, checked against the objects of the outer one.

    Raises ``VerificationError``: ``inner.size``, ``inner.json``, ``inner.fields`` for anything that is not exactly
    one, ``inner.name`` for a file name that is not allowed, ``inner.objects`` if files and objects do not match.
    """
    inner = read_document(InnerManifest, data, kind="inner", limit_bytes=MAX_MANIFEST_BYTES)
    check_file_names([file.name for file in inner.files])
    if [file.object for file in inner.files] != list(range(1, len(objects) + 1)):
        raise VerificationError("inner.objects", f"expected the files of objects 1 to {len(objects)}, in this order")
    for file, sealed in zip(inner.files, objects, strict=True):
        if sealed.size != ciphertext_size(file.size):
            raise VerificationError(
                "inner.objects", f"{file.name}: {sealed.size} bytes cannot hold {file.size} bytes of plaintext"
            )
    return inner


def check_file_names(names: list[str]) -> None:
    """Refuses file names that could lead out of a directory, be run, or be taken for one another.

    Allowed: at most three parts of ASCII letters, digits, dot, hyphen and underscore, each beginning with none but a
    letter, digit or underscore, and a suffix of data: ``.safetensors``, ``.json``, ``.txt``. Two names must differ in
    more than case. Raises ``VerificationError`` (``inner.name``).
    """
    for name in names:
        if not _FILE_NAME.fullmatch(name) or not name.endswith(_FILE_SUFFIXES):
            raise VerificationError(
                "inner.name",
                f"file name {name[:200]!r} is not allowed: expected ASCII, ending in .safetensors, .json or .txt",
            )
    if len({name.casefold() for name in names}) != len(names):
        raise VerificationError("inner.name", "two files have the same name")


def ciphertext_size(plaintext_size: int) -> int:
    """Returns how many bytes Cobblestone-256 makes of a plaintext: a header of 56, and a tag of 16 for each chunk."""
    return 56 + plaintext_size + 16 * (plaintext_size // 16384 + 1)


def object_context(bundle_id: str, index: int) -> bytes:
    """Returns the context that ties a ciphertext to its bundle and place: 0 is the inner manifest, files follow."""
    return FORMAT.encode() + b"\0" + bytes.fromhex(bundle_id) + index.to_bytes(4, "big")
