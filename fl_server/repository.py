"""The model owner's repository: published, renewed and re-keyed so that clients accept it at every moment.

``scaleot_core.bundle.repository`` has its layout. What has a number or a digest in its name is written once and never
changed; ``timestamp.json`` is replaced, and last, so that a process killed at any write leaves what was published
before, and the next one passes over the numbers that it left behind.
"""

from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from pathlib import Path

from tuf.api.metadata import TargetFile

from fl_server.repository_files import place_file, place_object
from fl_server.repository_keys import first_key, make_key
from fl_server.repository_state import (
    REPOSITORY_DIRECTORY,
    Expiries,
    RepositoryState,
    first_root,
    last_version,
    published_target,
    read_state,
    with_key,
)
from fl_server.sealed_versions import SealedVersion
from scaleot_core.bundle import load_verifying_key, read_bundle, verify_bundle, verify_objects
from scaleot_core.bundle.file_lock import locked
from scaleot_core.bundle.manifest import OBJECTS_DIRECTORY
from scaleot_core.bundle.repository import LIFETIMES, TARGET, Role, target_file
from scaleot_core.errors import InputError

ROOT_RENEWED_BEFORE = timedelta(days=90)
"""A root that has less than this left is renewed by the next publication."""


def create_repository(home: Path, *, now: datetime) -> None:
    """Makes the repository's keys and its first root where they are not there yet.

    Raises:
        OutputError: the home cannot be written.
    """
    with sole_publisher(home):
        _create(home, now)


def publish(home: Path, sealed: SealedVersion, *, now: datetime) -> Expiries:
    """Makes a sealed emulator the one that clients get, and every signature of the repository as fresh as can be.

    The bundle is verified first, with the owner's public key. Publishing the version that is published already renews
    the metadata. A root that ends within 90 days is renewed, too.

    Raises:
        InputError: a higher version is published, or a key is not in the home.
        VerificationError: the bundle is not whole.
        OutputError: the repository cannot be written; what was published before still is.
    """
    bundle = sealed.bundle
    found = read_bundle(bundle.path)
    verified = verify_bundle(found, load_verifying_key(home / "owner.pub"), now=now)
    verify_objects(verified)
    with sole_publisher(home):
        _create(home, now)
        state = read_state(home)
        _refuse_older(state, sealed)
        for one in verified.manifest.objects:
            place_object(verified.objects_directory / one.name, state.repository / OBJECTS_DIRECTORY / one.name)
        target = TargetFile.from_data(TARGET, found.envelope, ["sha256"])
        target.unrecognized_fields["custom"] = {"digest": bundle.digest, "version": sealed.version}
        place_file(state.repository / target_file(target.hashes["sha256"]), found.envelope)
        if state.root.signed.expires - now < ROOT_RENEWED_BEFORE:
            state.write_root(state.root, [state.key(Role.ROOT)], now)
        state.write_targets({TARGET: target}, [state.key(Role.TARGETS)], now)
        state.write_snapshot([state.key(Role.SNAPSHOT)], now)
        state.write_timestamp([state.key(Role.TIMESTAMP)], now)
        return state.expiries()


def refresh_repository(home: Path, *, now: datetime) -> Expiries:
    """Says again, for a day, that what is published is the newest; renews the snapshot when half its life is over.

    Needs the snapshot's and the timestamp's key alone.

    Raises:
        InputError: nothing is published, or a key is not in the home.
        OutputError: the repository cannot be written; what was published before still is.
    """
    with sole_publisher(home):
        state = read_state(home)
        if state.snapshot is None:
            raise InputError(f"{state.repository} has nothing to renew: publish first, with scaleot publish {home}")
        if state.snapshot.signed.expires - now < LIFETIMES[Role.SNAPSHOT] / 2:
            state.write_snapshot([state.key(Role.SNAPSHOT)], now)
        state.write_timestamp([state.key(Role.TIMESTAMP)], now)
        return state.expiries()


def rotate(home: Path, role: Role, *, now: datetime) -> Expiries:
    """Replaces a role's keys by new ones: root N+1, signed by the root keys of N and of N+1.

    What the role had signed is signed by its old and its new keys before that root appears, so that clients accept it
    under either.

    Raises:
        InputError: there is no repository, or a key is not in the home.
        OutputError: the repository cannot be written; what was published before still is.
    """
    with sole_publisher(home):
        state = read_state(home)
        root_key, old = state.key(Role.ROOT), state.key(role)
        new = make_key(home, role)
        if role is Role.ROOT:
            state.write_root(with_key(state.root, role, new), [root_key, new], now)
            return state.expiries()
        keys = {one: [state.key(one)] for one in (Role.SNAPSHOT, Role.TIMESTAMP)} | {role: [old, new]}
        if state.targets is not None:
            if role is Role.TARGETS:
                state.write_targets(state.targets.signed.targets, keys[Role.TARGETS], now)
            if role is not Role.TIMESTAMP:
                state.write_snapshot(keys[Role.SNAPSHOT], now)
            state.write_timestamp(keys[Role.TIMESTAMP], now)
        state.write_root(with_key(state.root, role, new), [root_key], now)
        return state.expiries()


def _create(home: Path, now: datetime) -> None:
    if last_version(home / REPOSITORY_DIRECTORY, Role.ROOT):
        return
    keys = {role: first_key(home, role) for role in Role}
    root = first_root(keys)
    RepositoryState(home, root).write_root(root, [keys[Role.ROOT]], now)


def _refuse_older(state: RepositoryState, sealed: SealedVersion) -> None:
    published = published_target(state)
    if published is None:
        return
    of = published.custom
    if of["version"] > sealed.version or (of["version"] == sealed.version and of["digest"] != sealed.bundle.digest):
        raise InputError(
            f"version {of['version']} is published, and clients take no older or other one: got version "
            f"{sealed.version}. Seal it again as version {of['version'] + 1} or higher"
        )


def sole_publisher(home: Path) -> AbstractContextManager[None]:
    """Keeps other processes from publishing, renewing or pruning; waits, since each of them is done in seconds."""
    in_use = f"{home / REPOSITORY_DIRECTORY} is in use by another process for 10 minutes"
    return locked(home / f"{REPOSITORY_DIRECTORY}.lock", in_use=in_use, wait_seconds=600.0)
