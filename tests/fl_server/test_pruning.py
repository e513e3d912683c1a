"""What ``--keep N`` removes and what it leaves: in the home, in a copy, and in what the service gives."""

from pathlib import Path

import pytest

from fl_server.bundle_index import read_manifest
from fl_server.owner import OwnerRunSettings, write_run
from fl_server.pruning import prune, prune_copy
from fl_server.published_index import published_index
from fl_server.repository import create_repository, publish
from fl_server.repository_files import copy_repository
from fl_server.sealed_versions import SealedVersion, read_sealed, sealed_numbers
from scaleot_core.bundle import read_bundle, verify_bundle, verify_objects
from scaleot_core.errors import InputError
from tests.support.bundles import FILES
from tests.support.kills import every_kill
from tests.support.owner_homes import (
    new_owner_home,
    now,
    owner_of,
    publish_small_version,
    seal_small_version,
    served_digests,
)
from tests.support.updates import random_state


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = new_owner_home(tmp_path / "owner")
    create_repository(home, now=now())
    return home


def publish_versions(home: Path, count: int) -> list[SealedVersion]:
    return [publish_small_version(home, {**FILES, "more.txt": b"%d" % number}) for number in range(1, count + 1)]


def names_of(sealed: SealedVersion, home: Path) -> set[str]:
    verified = verify_bundle(read_bundle(sealed.bundle.path), owner_of(home).public, now=now())
    return {one.name for one in verified.manifest.objects}


def object_files(repository: Path) -> set[str]:
    return {path.name for path in (repository / "objects").iterdir()}


def manifest_files(repository: Path) -> list[Path]:
    return list((repository / "targets").rglob("*.manifest.json"))


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_newest_versions_stay_whole_and_of_older_ones_nothing_does(home: Path, keep: int) -> None:
    kept = publish_versions(home, 4)[-keep:]
    names = set.union(*(names_of(sealed, home) for sealed in kept))
    assert prune(home, keep) == tuple(range(1, 5 - keep))
    assert object_files(home / "repository") == names
    assert len(manifest_files(home / "repository")) == keep
    assert sorted(sealed_numbers(home)) == [sealed.version for sealed in kept]
    assert not list((home / "sealed").glob(".*"))
    for sealed in kept:
        verify_objects(verify_bundle(read_bundle(sealed.bundle.path), owner_of(home).public, now=now()))
    assert prune(home, keep) == ()


def test_keeping_more_than_there_are_removes_nothing(home: Path) -> None:
    publish_versions(home, 2)
    before = object_files(home / "repository")
    assert prune(home, 7) == ()
    assert object_files(home / "repository") == before


def test_a_version_that_is_sealed_and_not_published_yet_stays_and_does_not_count(home: Path) -> None:
    publish_versions(home, 2)
    coming = seal_small_version(home)
    assert prune(home, 1) == (1,)
    assert sorted(sealed_numbers(home)) == [2, 3]
    publish(home, coming, now=now())


def test_versions_that_were_never_published_are_removed_with_those_around_them(home: Path) -> None:
    publish_versions(home, 1)
    seal_small_version(home)
    publish_small_version(home)
    assert prune(home, 1) == (1, 2)
    assert sealed_numbers(home) == [3]


def test_objects_and_halves_of_objects_that_no_manifest_names_are_removed_and_other_files_are_not(home: Path) -> None:
    publish_versions(home, 1)
    objects, before = home / "repository" / "objects", object_files(home / "repository")
    (objects / ("a" * 64)).write_bytes(b"left by a process that was killed before its manifest")
    (objects / f".{'a' * 64}.{'b' * 16}.partial").write_bytes(b"half")
    (objects / "index.html").write_bytes(b"somebody's")
    assert prune(home, 1) == ()
    assert object_files(home / "repository") == before | {"index.html"}


def test_nothing_is_removed_before_something_is_published(home: Path) -> None:
    seal_small_version(home)
    with pytest.raises(InputError, match="has published nothing yet"):
        prune(home, 1)
    assert sealed_numbers(home) == [1]


def test_the_sealed_version_that_the_run_is_about_stays(home: Path) -> None:
    first, _, third = publish_versions(home, 3)
    settings = OwnerRunSettings(
        run="run-1",
        clients=1,
        clients_per_round=1,
        rounds=1,
        local_steps=1,
        batch_size=1,
        learning_rate=1e-3,
        optimizer="adamw",
        max_tokens=8,
        aggregation="fedavg",
        adapter=first.record.adapter,
        bundle_digest=first.record.digest,
        seed=0,
        round_deadline_seconds=60.0,
    )
    (home / "run").mkdir()
    write_run(home / "run", settings, random_state(0), owner=owner_of(home))
    assert prune(home, 1) == (1, 2), "both are gone from the repository"
    assert sorted(sealed_numbers(home)) == [1, 3]
    assert read_sealed(home, 1).record.digest == first.record.digest
    assert object_files(home / "repository") == names_of(third, home)


def test_a_copy_loses_what_the_repository_lost(home: Path, tmp_path: Path) -> None:
    publish_versions(home, 2)
    repository, copy = home / "repository", tmp_path / "copy"
    copy_repository(repository, copy)
    newest = publish_small_version(home)
    prune(home, 1)
    copy_repository(repository, copy)
    assert len(object_files(copy)) > len(object_files(repository)), "copying alone removes nothing"
    prune_copy(repository, copy)
    assert object_files(copy) == object_files(repository) == names_of(newest, home)
    assert len(manifest_files(copy)) == 1


def test_a_copy_that_is_pruned_and_killed_before_every_write_has_every_object_of_its_manifests(
    home: Path, tmp_path: Path
) -> None:
    publish_versions(home, 2)
    repository, copy = home / "repository", tmp_path / "copy"
    copy_repository(repository, copy)
    prune(home, 1)
    kills = 0
    for _ in every_kill(lambda: prune_copy(repository, copy)):
        kills += 1
        for manifest in manifest_files(copy):
            assert {one.name for one in read_manifest(manifest.read_bytes())[1].objects} <= object_files(copy)
    assert kills >= 3
    assert object_files(copy) == object_files(repository)


def test_the_service_stops_naming_what_was_removed_at_once(home: Path) -> None:
    first, second = publish_versions(home, 2)
    index = published_index(home)
    assert served_digests(index()) == {first.bundle.digest, second.bundle.digest}
    prune(home, 1)
    assert served_digests(index()) == {second.bundle.digest}
    assert set(index().objects) == names_of(second, home)


def test_pruning_that_is_killed_before_every_write_leaves_every_manifest_with_its_objects(home: Path) -> None:
    *_, newest = publish_versions(home, 3)
    repository = home / "repository"
    kills = 0
    for _ in every_kill(lambda: prune(home, 1)):
        kills += 1
        for served in published_index(home)().objects.values():
            assert served.path.stat().st_size == served.size_bytes
        for number in sealed_numbers(home):
            verified = verify_bundle(
                read_bundle(read_sealed(home, number).bundle.path), owner_of(home).public, now=now()
            )
            verify_objects(verified)
    assert kills >= 10
    assert object_files(repository) == names_of(newest, home)
    assert sealed_numbers(home) == [3]
    assert not list((home / "sealed").glob(".*"))
