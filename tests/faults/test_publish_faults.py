"""Publishing and receiving on machines that die, and on disks that are full: what was accepted before still is."""

import shutil
from pathlib import Path

import pytest

from fl_server.grants import issue_grants
from fl_server.repository import create_repository, publish, refresh_repository, rotate
from fl_server.repository_files import copy_repository
from fl_server.sealed_versions import read_sealed
from scaleot_core.bundle import Identity
from scaleot_core.bundle.repository import Role
from scaleot_core.errors import InputError, OutputError
from tests.support.bundles import FILES
from tests.support.kills import every_kill, no_file_larger_than
from tests.support.owner_homes import (
    CLINIC,
    new_data_owner_home,
    new_owner_home,
    now,
    opened,
    owner_of,
    publish_small_version,
    received,
    seal_small_version,
)

NEWER = {**FILES, "more.txt": b"2"}


class Two:
    """A model owner's home, and a clinic's that pinned its first root."""

    def __init__(self, root: Path) -> None:
        self.owner_home = new_owner_home(root / "owner")
        create_repository(self.owner_home, now=now())
        self.home = root / "clinic"
        self.identity: Identity = new_data_owner_home(self.owner_home, self.home)

    @property
    def repository(self) -> Path:
        return self.owner_home / "repository"

    def receive(self, source: Path | None = None) -> int:
        """The clinic receives and opens; returns the version."""
        shutil.copy(issue_grants(self.owner_home, {CLINIC: self.identity.recipient})[CLINIC], self.home / "grant.json")
        version = received(self.home, source or self.repository).version
        assert (
            opened(self.home, self.identity, owner_of(self.owner_home)).get("more.txt") == {1: None, 2: b"2"}[version]
        )
        return version


@pytest.fixture
def two(tmp_path: Path) -> Two:
    return Two(tmp_path)


def test_a_first_publication_killed_before_every_write_goes_on_where_it_was(tmp_path: Path) -> None:
    owner_home = new_owner_home(tmp_path / "owner")
    sealed = seal_small_version(owner_home)
    kills = list(every_kill(lambda: publish(owner_home, sealed, now=now())))
    assert len(kills) >= 15
    roots = list((owner_home / "repository" / "metadata").glob("*.root.json"))
    assert [path.name for path in roots] == ["1.root.json"]
    identity = new_data_owner_home(owner_home, tmp_path / "clinic")
    grant = issue_grants(owner_home, {CLINIC: identity.recipient})[CLINIC]
    shutil.copy(grant, tmp_path / "clinic" / "grant.json")
    assert received(tmp_path / "clinic", owner_home / "repository").version == 1


def test_a_publication_killed_before_every_write_leaves_a_repository_that_clients_accept(two: Two) -> None:
    publish_small_version(two.owner_home)
    sealed = seal_small_version(two.owner_home, NEWER)
    seen = [two.receive() for _ in every_kill(lambda: publish(two.owner_home, sealed, now=now()))]
    assert len(seen) >= 15
    assert seen == sorted(seen) and seen[0] == 1, "version 1 until version 2 is whole"
    assert two.receive() == 2


@pytest.mark.parametrize("role", list(Role))
def test_a_rotation_killed_before_every_write_leaves_a_repository_that_clients_accept(two: Two, role: Role) -> None:
    publish_small_version(two.owner_home)
    seen = [two.receive() for _ in every_kill(lambda: rotate(two.owner_home, role, now=now()))]
    assert len(seen) >= 10
    refresh_repository(two.owner_home, now=now())
    assert two.receive() == 1


def test_a_copy_killed_before_every_write_leaves_a_copy_that_clients_accept(two: Two, tmp_path: Path) -> None:
    publish_small_version(two.owner_home)
    copy = tmp_path / "copy"
    copy_repository(two.repository, copy)
    two.receive(copy)
    publish(two.owner_home, seal_small_version(two.owner_home, NEWER), now=now())
    seen = []
    for _ in every_kill(lambda: copy_repository(two.repository, copy)):
        newest = (copy / "metadata" / "timestamp.json").read_bytes()
        if newest != (two.repository / "metadata" / "timestamp.json").read_bytes():
            continue  # still version 1, and the grant at hand is of version 2
        seen.append(two.receive(copy))
    assert two.receive(copy) == 2
    assert set(seen) <= {2}


def test_a_receipt_killed_before_every_write_ends_in_a_bundle_that_opens(two: Two) -> None:
    publish_small_version(two.owner_home)
    two.receive()
    publish(two.owner_home, seal_small_version(two.owner_home, NEWER), now=now())
    grant = issue_grants(two.owner_home, {CLINIC: two.identity.recipient})[CLINIC]
    shutil.copy(grant, two.home / "grant.json")
    kills = list(every_kill(lambda: received(two.home, two.repository)))
    assert len(kills) > 20
    assert two.receive() == 2
    left = {path.name for path in (two.home / "bundles").iterdir()}
    assert left == {
        "current",
        read_sealed(two.owner_home).bundle.digest,
        f"{read_sealed(two.owner_home).bundle.digest}.lock",
    }


@pytest.mark.parametrize("fitting_bytes", [0, 500, 5_000])
def test_f06_a_disk_that_is_full_while_publishing_leaves_what_was_published(two: Two, fitting_bytes: int) -> None:
    publish_small_version(two.owner_home)
    sealed = seal_small_version(two.owner_home, NEWER)
    with no_file_larger_than(fitting_bytes), pytest.raises(OutputError, match=r"make room, and publish again"):
        publish(two.owner_home, sealed, now=now())
    assert not list(two.repository.rglob("*.partial"))
    assert two.receive() == 1
    publish(two.owner_home, sealed, now=now())
    assert two.receive() == 2


def test_f06_a_disk_that_is_full_while_an_object_is_copied_leaves_the_copy_as_it_was(
    two: Two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file system has no links to ours, so the object is copied."""
    import errno

    def no_link(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    publish_small_version(two.owner_home, {**FILES, "emulator.safetensors": bytes(300_000)})
    monkeypatch.setattr(Path, "hardlink_to", no_link)
    copy = tmp_path / "copy"
    with no_file_larger_than(100_000), pytest.raises(OutputError, match="make room"):
        copy_repository(two.repository, copy)
    assert not list(copy.rglob("*.partial")) and not (copy / "metadata").exists()
    copy_repository(two.repository, copy)
    assert two.receive(copy) == 1


def test_a_lower_version_than_the_published_one_is_refused(two: Two) -> None:
    first = publish_small_version(two.owner_home)
    publish_small_version(two.owner_home, NEWER)
    with pytest.raises(InputError, match=r"version 2 is published, and clients take no older.*version 3 or higher"):
        publish(two.owner_home, first, now=now())
    assert two.receive() == 2


def test_nothing_is_renewed_or_rotated_before_it_is_published(tmp_path: Path) -> None:
    home = new_owner_home(tmp_path / "owner")
    with pytest.raises(InputError, match="publish first"):
        rotate(home, Role.TARGETS, now=now())
    create_repository(home, now=now())
    with pytest.raises(InputError, match="nothing to renew"):
        refresh_repository(home, now=now())


def test_damaged_metadata_of_the_owners_own_is_named(two: Two) -> None:
    publish_small_version(two.owner_home)
    path = two.repository / "metadata" / "1.snapshot.json"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"1\.snapshot\.json cannot be read.*Bring it back"):
        refresh_repository(two.owner_home, now=now())


def test_a_damaged_bundle_is_not_published(two: Two) -> None:
    from scaleot_core.errors import VerificationError

    sealed = seal_small_version(two.owner_home)
    (one, *_) = sorted((sealed.bundle.path / "objects").iterdir())
    data = bytearray(one.read_bytes())
    data[-1] ^= 1
    one.write_bytes(bytes(data))
    with pytest.raises(VerificationError, match=r"object\.block"):
        publish(two.owner_home, sealed, now=now())
    assert not (two.repository / "metadata" / "timestamp.json").exists()
