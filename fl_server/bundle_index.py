"""What a distribution service may serve, by digest and by name, and nothing else."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from scaleot_core.bundle.canonical import read_document
from scaleot_core.bundle.envelope import Envelope
from scaleot_core.bundle.manifest import MAX_ENVELOPE_BYTES, OuterManifest, read_outer_manifest


@dataclass(frozen=True)
class ServedObject:
    """The file that holds an object, and the size it was sealed with."""

    path: Path
    size_bytes: int


@dataclass(frozen=True)
class BundleIndex:
    """What a repository holds."""

    objects: dict[str, ServedObject] = field(repr=False)
    """By their digest."""
    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    """The small ones, by name."""
    grants: dict[tuple[str, str], bytes] = field(default_factory=dict, repr=False)
    """By organisation and bundle digest."""


def read_manifest(envelope: bytes) -> tuple[str, OuterManifest]:
    """Returns the digest of a signed manifest and what it says; its signatures are not verified."""
    statement = read_document(Envelope, envelope, kind="bundle", limit_bytes=MAX_ENVELOPE_BYTES).payload
    return hashlib.sha256(statement).hexdigest(), read_outer_manifest(statement)
