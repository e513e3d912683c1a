"""From a directory somebody handed over to a bundle of which nothing is used that the owner did not sign."""

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from scaleot_core.bundle.archive import read_blocks
from scaleot_core.bundle.envelope import verify_statement
from scaleot_core.bundle.files import open_regular_file
from scaleot_core.bundle.keys import VerifyingKey
from scaleot_core.bundle.manifest import (
    MANIFEST_FILE,
    MANIFEST_TYPE,
    MAX_ENVELOPE_BYTES,
    OBJECTS_DIRECTORY,
    OuterManifest,
    read_outer_manifest,
)
from scaleot_core.errors import VerificationError


@dataclass(frozen=True)
class UnverifiedBundle:
    """A bundle's place and the bytes of its signed manifest; nothing of it has been looked at."""

    path: Path
    envelope: bytes = field(repr=False)


@dataclass(frozen=True)
class SignedManifest:
    """A manifest that the owner signed, and its SHA-256; the objects may be anywhere, or nowhere."""

    digest: str
    manifest: OuterManifest = field(repr=False)


@dataclass(frozen=True)
class VerifiedBundle:
    """A bundle whose manifest the owner signed; still encrypted. ``digest`` is the signed manifest's SHA-256.

    The manifest has the digest of every block, so ``open_bundle`` decrypts none but the owner's. Whether they all lie
    in ``path`` is not known before it has read them, or ``verify_objects`` has.
    """

    path: Path
    digest: str
    manifest: OuterManifest = field(repr=False)
    owner: VerifyingKey = field(repr=False)

    @property
    def bundle_id(self) -> str:
        """The 16 random bytes that name the bundle, in hexadecimal."""
        return self.manifest.bundle_id

    @property
    def objects_directory(self) -> Path:
        """Where the ciphertexts lie."""
        return self.path / OBJECTS_DIRECTORY


def read_bundle(path: Path) -> UnverifiedBundle:
    """Reads a bundle's signed manifest without looking into it.

    Raises ``VerificationError``: ``bundle.missing`` if there is none, ``bundle.size`` if it is over 6 MiB.
    """
    try:
        with open_regular_file(path / MANIFEST_FILE) as file:
            envelope = file.read(MAX_ENVELOPE_BYTES + 1)
    except OSError as error:
        raise VerificationError(
            "bundle.missing", f"{path} is no sealed bundle: {MANIFEST_FILE}: {error.strerror}"
        ) from error
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise VerificationError("bundle.size", f"{path}: the signed manifest is over {MAX_ENVELOPE_BYTES} bytes")
    return UnverifiedBundle(path, envelope)


def verify_manifest(envelope: bytes, owner: VerifyingKey, *, now: datetime) -> SignedManifest:
    """Returns what a signed manifest says if both signatures hold and it has not expired.

    ``now`` carries a time zone. This is what has to hold before an object is asked for; nothing is said of the objects.
    Raises ``VerificationError`` with a code ``bundle.*``.
    """
    statement = verify_statement(envelope, MANIFEST_TYPE, owner, kind="bundle", limit_bytes=MAX_ENVELOPE_BYTES)
    manifest = read_outer_manifest(statement)
    check_is_current(manifest, now)
    return SignedManifest(hashlib.sha256(statement).hexdigest(), manifest)


def verify_bundle(bundle: UnverifiedBundle, owner: VerifyingKey, *, now: datetime) -> VerifiedBundle:
    """Returns the bundle if both signatures hold and it has not expired; reads no object.

    ``now`` carries a time zone. Raises ``VerificationError`` with a code ``bundle.*`` of ``FORMAT.md``.
    """
    signed = verify_manifest(bundle.envelope, owner, now=now)
    return VerifiedBundle(bundle.path, signed.digest, manifest=signed.manifest, owner=owner)


def verify_objects(bundle: VerifiedBundle) -> None:
    """Raises ``VerificationError`` (``object.*``) unless every byte of every object is the one that the owner signed.

    For who passes a bundle on without opening it: ``open_bundle`` does the same on its way. Reads all objects once and
    decrypts nothing; memory is bounded by one block of 16 MiB.
    """
    for sealed in bundle.manifest.objects:
        for _ in read_blocks(bundle.objects_directory, sealed):
            pass


def check_is_current(manifest: OuterManifest, now: datetime) -> None:
    """Raises ``VerificationError`` (``bundle.expired``) from the bundle's end on."""
    if now >= manifest.not_after:
        raise VerificationError("bundle.expired", f"the bundle could be used until {manifest.not_after}; it is {now}")
