"""S06: keys are replaced without a client being told by hand; what the old keys sign afterwards counts for nothing."""

import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata

from fl_server.grants import issue_grants
from fl_server.repository import publish, refresh_repository, rotate
from fl_server.repository_keys import signers
from fl_server.sealed_versions import read_sealed
from scaleot_core.bundle import SigningKey, load_signing_key
from scaleot_core.bundle.repository import Role
from scaleot_core.errors import InputError, VerificationError
from tests.support.bundles import FILES
from tests.support.owner_homes import (
    CLINIC,
    new_data_owner_home,
    new_owner_home,
    now,
    opened,
    owner_of,
    publish_small_version,
    received,
)


class Scene:
    """A clinic that pinned root 1 and has version 1."""

    def __init__(self, root: Path) -> None:
        self.owner_home = new_owner_home(root / "owner")
        publish_small_version(self.owner_home)
        self.home = root / "clinic"
        self.identity = new_data_owner_home(self.owner_home, self.home)
        self.receive()

    @property
    def repository(self) -> Path:
        return self.owner_home / "repository"

    def receive(self, source: Path | None = None) -> int:
        grants = issue_grants(self.owner_home, {CLINIC: self.identity.recipient})
        shutil.copy(grants[CLINIC], self.home / "grant.json")
        return received(self.home, source or self.repository).version

    def key(self, role: Role, number: int) -> SigningKey:
        return load_signing_key(self.owner_home / "keys" / f"{role}-{number}.key")


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.mark.parametrize("role", list(Role))
def test_s06_a_client_follows_the_rotation_of_a_role_by_itself(scene: Scene, role: Role) -> None:
    rotate(scene.owner_home, role, now=now())
    assert scene.receive() == 1
    publish_small_version(scene.owner_home, {**FILES, "more.txt": b"2"})
    assert scene.receive() == 2
    assert opened(scene.home, scene.identity, owner_of(scene.owner_home))["more.txt"] == b"2"


def test_s06_a_client_that_slept_through_every_rotation_walks_from_its_pinned_root(scene: Scene) -> None:
    pinned = (scene.home / "root.json").read_bytes()
    for role in [*Role, *Role]:
        rotate(scene.owner_home, role, now=now())
    publish_small_version(scene.owner_home)
    assert scene.receive() == 2
    assert (scene.home / "root.json").read_bytes() == pinned


def sign_again(path: Path, key: SigningKey, *, later: timedelta = timedelta(0)) -> None:
    """What a thief with a role's old key publishes: the next version of its metadata, in perfect form."""
    metadata = Metadata.from_file(str(path))
    metadata.signed.version += 1
    metadata.signed.expires += later
    metadata.signatures.clear()
    for signer in signers(key):
        metadata.sign(signer, append=True)
    target = (
        path
        if path.name == "timestamp.json"
        else path.with_name(f"{metadata.signed.version}.{path.name.partition('.')[2]}")
    )
    target.write_bytes(metadata.to_bytes())


def test_s06_what_the_old_timestamp_key_signs_afterwards_is_refused(scene: Scene) -> None:
    rotate(scene.owner_home, Role.TIMESTAMP, now=now())
    sign_again(scene.repository / "metadata" / "timestamp.json", scene.key(Role.TIMESTAMP, 1))
    with pytest.raises(VerificationError, match=r"\[repository\.signature\]"):
        scene.receive()
    refresh_repository(scene.owner_home, now=now())
    assert scene.receive() == 1


def test_s06_a_root_that_the_old_root_key_signs_afterwards_is_refused(scene: Scene) -> None:
    rotate(scene.owner_home, Role.ROOT, now=now())
    sign_again(scene.repository / "metadata" / "2.root.json", scene.key(Role.ROOT, 1))
    with pytest.raises(VerificationError, match=r"\[repository\.signature\]"):
        scene.receive()


def test_s06_a_new_root_without_the_old_ones_signature_is_refused(scene: Scene) -> None:
    rotate(scene.owner_home, Role.ROOT, now=now())
    path = scene.repository / "metadata" / "2.root.json"
    metadata = Metadata.from_file(str(path))
    metadata.signatures.clear()
    for signer in signers(scene.key(Role.ROOT, 2)):
        metadata.sign(signer, append=True)
    path.write_bytes(metadata.to_bytes())
    with pytest.raises(VerificationError, match=r"\[repository\.signature\]"):
        scene.receive()


def test_s06_the_old_keys_do_not_come_back_when_the_state_of_tuf_is_deleted(scene: Scene, tmp_path: Path) -> None:
    """A copy from before the rotation, re-signed by the stolen old keys with a higher version: only the mark knows."""
    before = shutil.copytree(scene.repository, tmp_path / "before")
    for role in Role:
        rotate(scene.owner_home, role, now=now())
    scene.receive()
    shutil.rmtree(scene.home / "repository" / "metadata")
    sign_again(before / "metadata" / "timestamp.json", scene.key(Role.TIMESTAMP, 1), later=timedelta(minutes=30))
    with pytest.raises(VerificationError, match=r"of root 5.*of root 1.*\[repository\.rollback\]"):
        received(scene.home, before)


def test_s06_root_and_targets_keys_may_lie_in_a_safe_while_the_timestamp_is_renewed(scene: Scene) -> None:
    for name in ("root-1.key", "targets-1.key"):
        (scene.owner_home / "keys" / name).rename(scene.owner_home / name)
    refresh_repository(scene.owner_home, now=now())
    assert scene.receive() == 1
    with pytest.raises(InputError, match=r"no root key that the repository's root lists: bring back the file"):
        rotate(scene.owner_home, Role.SNAPSHOT, now=now())
    with pytest.raises(InputError, match=r"no targets key"):
        publish_small_version(scene.owner_home)
    assert scene.receive() == 1
    (scene.owner_home / "targets-1.key").rename(scene.owner_home / "keys" / "targets-1.key")
    publish_small_version(scene.owner_home)
    assert scene.receive() == 3


def test_s06_a_root_near_its_end_is_renewed_by_the_next_publication(scene: Scene, tmp_path: Path) -> None:
    owner_home = new_owner_home(tmp_path / "another")
    shutil.copytree(scene.owner_home / "sealed", owner_home / "sealed")
    for name in ("owner.key", "owner.pub"):
        shutil.copy(scene.owner_home / name, owner_home / name)
    sealed = read_sealed(owner_home)
    publish(owner_home, sealed, now=now() - timedelta(days=300))
    home = tmp_path / "late"
    identity = new_data_owner_home(owner_home, home)
    expiries = publish(owner_home, sealed, now=now())
    assert expiries.root > now() + timedelta(days=364)
    assert (owner_home / "repository" / "metadata" / "2.root.json").exists()
    grants = issue_grants(owner_home, {CLINIC: identity.recipient})
    shutil.copy(grants[CLINIC], home / "grant.json")
    assert received(home, owner_home / "repository").version == 1
