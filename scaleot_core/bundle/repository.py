"""What a model owner publishes: sealed bundles in a TUF repository, which any static store may hold.

The Update Framework (theupdateframework.github.io, specification 1.0, consistent snapshots) answers what a signed
manifest alone cannot: which version is the newest, and whether that was said today. ::

    metadata/<n>.root.json  <n>.targets.json  <n>.snapshot.json  timestamp.json
    targets/emulator/<sha256>.manifest.json     the bundle's signed manifest, ``manifest.dsse.json``, as the one target
    objects/<name>                              the bundle's ciphertexts

Every role signs with an Ed25519 and an ML-DSA-65 key (TAP 21), threshold 2: both must hold. Nothing here names an
organisation or a grant.

| role | signs | lives |
|---|---|---|
| root | whose keys count, and the root after it | 365 days |
| targets | which manifest is the emulator's | 90 days |
| snapshot | which targets belong together | 30 days |
| timestamp | that this is still the newest | 1 day |
"""

import re
from datetime import timedelta
from enum import StrEnum
from typing import Final

METADATA_DIRECTORY, TARGETS_DIRECTORY = "metadata", "targets"
TIMESTAMP_FILE: Final = f"{METADATA_DIRECTORY}/timestamp.json"
TARGET: Final = "emulator/manifest.json"
THRESHOLD: Final = 2

MAX_METADATA_BYTES: Final = 512 * 1024
"""Of one file of metadata. A root holds eight keys and four signatures: 40 kB."""

FILE_PATTERN: Final = (
    r"^(?:metadata/(?:timestamp|[1-9][0-9]{0,8}\.(?:root|targets|snapshot))\.json"
    r"|targets/emulator/[0-9a-f]{64}\.manifest\.json)$"
)
"""Every small file that a repository has; nothing else of it is asked for by name, so no path can be."""


class Role(StrEnum):
    """A role of TUF; each has keys of its own."""

    ROOT = "root"
    TARGETS = "targets"
    SNAPSHOT = "snapshot"
    TIMESTAMP = "timestamp"


LIFETIMES: Final = {
    Role.ROOT: timedelta(days=365),
    Role.TARGETS: timedelta(days=90),
    Role.SNAPSHOT: timedelta(days=30),
    Role.TIMESTAMP: timedelta(days=1),
}


def metadata_file(role: Role, version: int) -> str:
    """Returns the name of a role's metadata of one version, within the repository."""
    return f"{METADATA_DIRECTORY}/{version}.{role}.json" if role is not Role.TIMESTAMP else TIMESTAMP_FILE


def target_file(sha256: str) -> str:
    """Returns the name of the target whose bytes have this SHA-256, within the repository."""
    directory, _, name = TARGET.rpartition("/")
    return f"{TARGETS_DIRECTORY}/{directory}/{sha256}.{name}"


def is_repository_file(name: str) -> bool:
    """Tells whether a repository can have a small file of this name."""
    return re.fullmatch(FILE_PATTERN, name) is not None
