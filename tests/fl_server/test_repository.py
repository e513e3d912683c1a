"""What a published repository says, read by TUF's own code and not by ours; the attacks are in tests/attacks."""

from datetime import timedelta
from pathlib import Path

import pytest
from filelock import FileLock
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from fl_server.repository import create_repository, publish, refresh_repository, rotate
from fl_server.repository_files import copy_repository
from fl_server.repository_state import published_version
from scaleot_core.bundle.repository import LIFETIMES, TARGET, Role, is_repository_file, target_file
from scaleot_core.errors import OutputError
from tests.support.owner_homes import new_owner_home, now, publish_small_version, seal_small_version

KINDS = {Role.ROOT: Root, Role.TARGETS: Targets, Role.SNAPSHOT: Snapshot, Role.TIMESTAMP: Timestamp}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = new_owner_home(tmp_path / "owner")
    publish_small_version(home)
    return home


def read(home: Path, role: Role, version: int = 1) -> Metadata:  # type: ignore[type-arg]
    name = "timestamp.json" if role is Role.TIMESTAMP else f"{version}.{role}.json"
    return Metadata.from_file(str(home / "repository" / "metadata" / name))


def test_every_role_asks_for_both_of_its_two_keys_and_shares_none(home: Path) -> None:
    root = read(home, Role.ROOT).signed
    listed = [key_id for role in Role for key_id in root.roles[role].keyids]
    assert len(listed) == len(set(listed)) == len(root.keys) == 8
    for role in Role:
        assert root.roles[role].threshold == 2
        assert {root.keys[key_id].keytype for key_id in root.roles[role].keyids} == {"ed25519", "ml-dsa"}
        metadata = read(home, role)
        assert isinstance(metadata.signed, KINDS[role])
        root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    assert root.consistent_snapshot


def test_every_role_lives_as_long_as_it_should(home: Path) -> None:
    for role, lifetime in LIFETIMES.items():
        assert abs(read(home, role).signed.expires - now() - lifetime) < timedelta(minutes=5)


def test_the_target_is_the_signed_manifest_and_says_its_version(home: Path) -> None:
    target = read(home, Role.TARGETS).signed.targets[TARGET]
    placed = home / "repository" / target_file(target.hashes["sha256"])
    sealed = home / "sealed" / "1" / "bundle"
    assert placed.read_bytes() == (sealed / "manifest.dsse.json").read_bytes()
    assert target.custom["version"] == published_version(home) == 1


def test_every_small_file_has_a_name_of_the_pattern_and_fits_its_limit(home: Path) -> None:
    rotate(home, Role.TIMESTAMP, now=now())
    small = list((home / "repository").rglob("*.json"))
    assert len(small) == 6
    for path in small:
        assert is_repository_file(path.relative_to(home / "repository").as_posix())
        assert path.stat().st_size < 64 * 1024


def test_objects_share_the_disk_with_the_sealed_bundle(home: Path) -> None:
    for path in (home / "repository" / "objects").iterdir():
        assert path.samefile(home / "sealed" / "1" / "bundle" / "objects" / path.name)


def test_publishing_again_renews_and_moves_nothing(home: Path) -> None:
    from fl_server.sealed_versions import read_sealed

    expiries = publish(home, read_sealed(home), now=now() + timedelta(days=3))
    assert expiries.targets is not None and expiries.targets > now() + timedelta(days=92)
    assert len(list((home / "repository" / "targets").rglob("*.json"))) == 1


def test_a_refresh_renews_the_snapshot_only_when_half_its_life_is_over(home: Path) -> None:
    refresh_repository(home, now=now())
    assert read(home, Role.TIMESTAMP).signed.version == 2
    assert not (home / "repository" / "metadata" / "2.snapshot.json").exists()
    refresh_repository(home, now=now() + timedelta(days=16))
    assert read(home, Role.SNAPSHOT, 2).signed.expires > now() + timedelta(days=45)


def test_a_repository_is_created_once(tmp_path: Path) -> None:
    home = new_owner_home(tmp_path / "owner")
    create_repository(home, now=now())
    root = (home / "repository" / "metadata" / "1.root.json").read_bytes()
    create_repository(home, now=now())
    publish(home, seal_small_version(home), now=now())
    assert (home / "repository" / "metadata" / "1.root.json").read_bytes() == root
    assert len(list((home / "keys").iterdir())) == 4


def test_two_processes_publish_one_after_the_other(home: Path) -> None:
    import threading

    lock = FileLock(home / "repository.lock")
    lock.acquire()
    done = threading.Thread(target=refresh_repository, args=(home,), kwargs={"now": now()})
    done.start()
    done.join(0.3)
    assert done.is_alive() and read(home, Role.TIMESTAMP).signed.version == 1
    lock.release()
    done.join(10)
    assert read(home, Role.TIMESTAMP).signed.version == 2


def test_a_copy_goes_nowhere_among_other_things(home: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(OutputError, match="holds something else than a copy of a repository"):
        copy_repository(home / "repository", tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]


def test_a_copy_is_byte_for_byte_the_repository_and_a_second_copying_changes_nothing(
    home: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "deep" / "copy"
    copy_repository(home / "repository", copy)

    def content(root: Path) -> dict[str, bytes]:
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    assert content(copy) == content(home / "repository")
    before = {path: path.stat().st_ino for path in copy.rglob("*")}
    copy_repository(home / "repository", copy)
    assert {path: path.stat().st_ino for path in copy.rglob("*")} == before
