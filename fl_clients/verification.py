"""What ``scaleot verify`` and ``scaleot inspect`` find in a directory: a sealed bundle, or a repository of them."""

import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tuf.api.metadata import Metadata, Root

from fl_clients.patient_source import PatientSource
from fl_clients.repository import PINNED_ROOT_FILE, STATE_DIRECTORY, newest_manifest
from fl_clients.sources import FolderSource
from scaleot_core.bundle import (
    UnverifiedBundle,
    VerifiedBundle,
    VerifyingKey,
    load_identity,
    read_bundle,
    verify_bundle,
    verify_grant,
    verify_objects,
)
from scaleot_core.bundle.archive import decrypt_manifest
from scaleot_core.bundle.canonical import Json, read_document
from scaleot_core.bundle.envelope import Envelope
from scaleot_core.bundle.files import open_regular_file
from scaleot_core.bundle.grant import MAX_GRANT_BYTES
from scaleot_core.bundle.manifest import MAX_ENVELOPE_BYTES, InnerManifest, OuterManifest, read_outer_manifest
from scaleot_core.bundle.repository import METADATA_DIRECTORY, TARGETS_DIRECTORY, TIMESTAMP_FILE
from scaleot_core.errors import InputError, VerificationError

_SECONDS = 600.0


@dataclass(frozen=True)
class VerifiedRoot:
    """Which root a repository was verified from, and the newest that it led to."""

    first: int
    newest: int
    is_pinned: bool
    """Given by the caller; otherwise it is the repository's own, which proves nothing of whose repository it is."""


@dataclass(frozen=True)
class Verified:
    """What holds of a directory."""

    bundle: VerifiedBundle
    root: VerifiedRoot | None
    """None for a bundle alone."""

    @property
    def size_bytes(self) -> int:
        """Of the ciphertexts."""
        return sum(sealed.size for sealed in self.bundle.manifest.objects)

    def sentence(self) -> str:
        """Says in one or two lines what was verified."""
        manifest, root = self.bundle.manifest, self.root
        of = f"version {manifest.version}, {len(manifest.objects)} objects, {self.size_bytes / 1e6:.1f} MB"
        said = f"verified: {of}, until {manifest.not_after}\nbundle {self.bundle.digest}"
        if root is None:
            return said
        if root.is_pinned:
            return f"{said}\nthe repository's newest, from the pinned root {root.first} to root {root.newest}"
        return (
            f"{said}\nthe repository's newest by its own root {root.first}: its signatures show that the bundle is the "
            "owner's; that it is the newest, only a pinned root can show (--root)"
        )

    def to_json(self) -> dict[str, Json]:
        """Returns the same as plain values."""
        manifest, root = self.bundle.manifest, self.root
        return {
            "kind": "bundle" if root is None else "repository",
            "version": manifest.version,
            "digest": self.bundle.digest,
            "bundle_id": manifest.bundle_id,
            "not_after": manifest.not_after.isoformat(),
            "objects": len(manifest.objects),
            "size_bytes": self.size_bytes,
            "root": None if root is None else vars(root),
        }


@dataclass(frozen=True)
class GrantFiles:
    """What opens the inner manifest."""

    grant: Path
    identity_key: Path
    organisation: str


@dataclass(frozen=True)
class Inspection:
    """What a bundle says of itself."""

    outer: OuterManifest
    inner: InnerManifest | None
    is_verified: bool

    def to_json(self) -> dict[str, Json]:
        """Returns the same as plain values; the encrypted manifest is left out."""
        outer = self.outer.model_dump(mode="json", exclude={"inner"})
        inner = None if self.inner is None else self.inner.model_dump(mode="json")
        return {"verified": self.is_verified, "manifest": outer, "inner": inner}


def verify_path(path: Path, owner: VerifyingKey, *, pinned_root: Path | None, now: datetime) -> Verified:
    """Verifies every byte of a bundle, or of the newest one in a repository and all that leads to it.

    ``now`` carries a time zone. Raises ``VerificationError`` with the code of the check that failed, ``FetchError``
    for a file that a repository lacks, and ``InputError`` for a path that is no directory and for a pinned root that
    cannot be read or has no repository.
    """
    _check_is_directory(path)
    if not is_repository(path):
        if pinned_root is not None:
            raise InputError(f"--root {pinned_root}: {path} is no repository, and a bundle alone has no root")
        return Verified(_verify_whole(read_bundle(path), owner, now), None)
    if not (path / TIMESTAMP_FILE).exists():
        raise VerificationError("repository.empty", f"nothing is published in {path}: expected {TIMESTAMP_FILE}")
    root = pinned_root or _first_root(path)
    with tempfile.TemporaryDirectory(prefix="scaleot-") as name:
        home = Path(name)
        try:
            (home / PINNED_ROOT_FILE).write_bytes(root.read_bytes())
        except OSError as error:
            raise InputError(f"the root {root} cannot be read: {error.strerror}") from error
        source = PatientSource(FolderSource(path), deadline_seconds=_SECONDS)
        newest = newest_manifest(source, home, owner=owner, now=now)
        roots = (home / PINNED_ROOT_FILE, home / STATE_DIRECTORY / METADATA_DIRECTORY / "root.json")
        first, last = (Metadata[Root].from_file(str(file)).signed.version for file in roots)
    bundle = _verify_whole(UnverifiedBundle(path, newest.envelope), owner, now)
    return Verified(bundle, VerifiedRoot(first, last, pinned_root is not None))


def _check_is_directory(path: Path) -> None:
    if not path.is_dir():
        raise InputError(f"{path} is no directory: expected a sealed bundle or a repository of them")


def inspect_path(path: Path, owner: VerifyingKey | None, grant: GrantFiles | None, *, now: datetime) -> Inspection:
    """Reads what a bundle, or a repository's newest one, says of itself; verified if the owner's key is given.

    With a grant, which needs the owner's key, the inner manifest is decrypted; nothing else is. ``now`` carries a time
    zone. Raises ``VerificationError`` and ``InputError``.
    """
    _check_is_directory(path)
    found = UnverifiedBundle(path, _newest_envelope(path)) if is_repository(path) else read_bundle(path)
    if owner is None:
        return Inspection(_outer(found.envelope), None, is_verified=False)
    verified = _verify_whole(found, owner, now)
    if grant is None:
        return Inspection(verified.manifest, None, is_verified=True)
    try:
        with open_regular_file(grant.grant) as file:
            granted = file.read(MAX_GRANT_BYTES + 1)
    except OSError as error:
        raise InputError(f"the grant {grant.grant} cannot be read: {error.strerror}") from error
    identity = load_identity(grant.identity_key)
    key = verify_grant(verified, granted, identity, organisation=grant.organisation, now=now)
    return Inspection(verified.manifest, decrypt_manifest(verified.manifest, key), is_verified=True)


def is_repository(path: Path) -> bool:
    """Tells whether a directory is a repository, and not one bundle."""
    return (path / METADATA_DIRECTORY).is_dir()


def _verify_whole(found: UnverifiedBundle, owner: VerifyingKey, now: datetime) -> VerifiedBundle:
    verified = verify_bundle(found, owner, now=now)
    verify_objects(verified)
    return verified


def _first_root(path: Path) -> Path:
    roots = sorted(
        (path / METADATA_DIRECTORY).glob("[0-9]*.root.json"), key=lambda root: int(root.name.partition(".")[0])
    )
    if not roots:
        raise VerificationError("repository.empty", f"{path} has no root metadata")
    return roots[0]


def _newest_envelope(path: Path) -> bytes:
    """Returns the manifest of the highest version that lies in a repository, published or not."""
    envelopes = [file.read_bytes() for file in (path / TARGETS_DIRECTORY).rglob("*.manifest.json")]
    if not envelopes:
        raise VerificationError("repository.empty", f"{path} has no manifest")
    return max(envelopes, key=lambda envelope: _outer(envelope).version)


def _outer(envelope: bytes) -> OuterManifest:
    return read_outer_manifest(read_document(Envelope, envelope, kind="bundle", limit_bytes=MAX_ENVELOPE_BYTES).payload)
