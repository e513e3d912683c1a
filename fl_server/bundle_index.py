"""What a distribution service may serve: found once at its start, by digest, and nothing else ever."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scaleot_core.bundle.canonical import read_document
from scaleot_core.bundle.envelope import Envelope
from scaleot_core.bundle.files import open_regular_file
from scaleot_core.bundle.manifest import MAX_ENVELOPE_BYTES, OBJECTS_DIRECTORY, OuterManifest, read_outer_manifest
from scaleot_core.bundle.verify import read_bundle
from scaleot_core.errors import InputError


@dataclass(frozen=True)
class ServedObject:
    """The file that holds an object, and the size it was sealed with."""

    path: Path
    size_bytes: int


@dataclass(frozen=True)
class BundleIndex:
    """The signed manifests by their digest, the newest one's digest, and the objects by theirs."""

    newest: str
    envelopes: dict[str, bytes] = field(repr=False)
    objects: dict[str, ServedObject] = field(repr=False)
    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    """The small files of a repository, by name; none without one."""
    grants: dict[tuple[str, str], bytes] = field(default_factory=dict, repr=False)
    """By organisation and bundle digest."""


def index_bundles(directories: Sequence[Path]) -> BundleIndex:
    """Reads the manifests of sealed bundles; the newest is that of the highest version, of equal ones the last.

    Signatures and digests are not verified here: who fetches trusts no server and does both. Memory: the manifests, at
    most 6 MiB each. Raises ``InputError`` for no directory, or an object that is missing or of another size than was
    sealed, and ``VerificationError`` (``bundle.*``) for what is no sealed bundle.
    """
    if not directories:
        raise InputError("nothing to serve: expected the directory of at least one sealed bundle")
    envelopes: dict[str, bytes] = {}
    objects: dict[str, ServedObject] = {}
    newest, newest_version = "", 0
    for directory in directories:
        envelope = read_bundle(directory).envelope
        digest, manifest = read_manifest(envelope)
        envelopes[digest] = envelope
        for sealed in manifest.objects:
            path = directory / OBJECTS_DIRECTORY / sealed.name
            _check_size(path, sealed.size)
            objects[sealed.name] = ServedObject(path, sealed.size)
        if manifest.version >= newest_version:
            newest, newest_version = digest, manifest.version
    return BundleIndex(newest, envelopes, objects)


def read_manifest(envelope: bytes) -> tuple[str, OuterManifest]:
    """Returns the digest of a signed manifest and what it says; its signatures are not verified."""
    statement = read_document(Envelope, envelope, kind="bundle", limit_bytes=MAX_ENVELOPE_BYTES).payload
    return hashlib.sha256(statement).hexdigest(), read_outer_manifest(statement)


def _check_size(path: Path, size_bytes: int) -> None:
    try:
        with open_regular_file(path, flags=os.O_NOFOLLOW) as file:
            got = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise InputError(f"object {path} cannot be served: {error.strerror}") from error
    if got != size_bytes:
        raise InputError(f"object {path} cannot be served: it was sealed with {size_bytes} bytes and has {got}")
