"""S04: a source that serves an older emulator, a frozen one, or files of different moments is refused.

Each attacker has everything that the model owner ever published, and no key.
"""

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from fl_server.grants import issue_grants
from fl_server.repository import publish, refresh_repository
from scaleot_core.bundle import Identity
from scaleot_core.bundle.canonical import canonical_json
from scaleot_core.errors import FetchError, VerificationError
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
    seal_small_version,
)


class Scene:
    """A clinic that has version 2, and a copy of the repository as it was at version 1."""

    def __init__(self, root: Path) -> None:
        self.owner_home = new_owner_home(root / "owner")
        publish_small_version(self.owner_home)
        self.home = root / "clinic"
        self.identity = new_data_owner_home(self.owner_home, self.home)
        self.old = shutil.copytree(self.repository, root / "old")
        publish_small_version(self.owner_home, {**FILES, "more.txt": b"2"})
        self.grant(self.identity)
        received(self.home, self.repository)

    @property
    def repository(self) -> Path:
        return self.owner_home / "repository"

    def grant(self, identity: Identity) -> None:
        grants = issue_grants(self.owner_home, {CLINIC: identity.recipient})
        shutil.copy(grants[CLINIC], self.home / "grant.json")

    def refused(self, source: Path, code: str) -> None:
        """The source is refused with this code, and what the clinic has stays in use."""
        with pytest.raises(VerificationError) as raised:
            received(self.home, source)
        assert raised.value.code == code, raised.value
        assert opened(self.home, self.identity, owner_of(self.owner_home))["more.txt"] == b"2"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_s04_the_repository_of_version_1_is_refused_after_version_2_was_seen(scene: Scene) -> None:
    scene.refused(scene.old, "repository.rollback")


def test_s04_the_repository_of_version_1_is_refused_with_the_state_of_tuf_deleted(scene: Scene) -> None:
    shutil.rmtree(scene.home / "repository" / "metadata")
    scene.refused(scene.old, "repository.rollback")


def test_s04_an_older_target_that_the_stolen_online_keys_sign_anew_is_refused(scene: Scene) -> None:
    """Who has snapshot and timestamp, but not targets, can only point at old targets metadata: its version tells."""
    old = scene.old / "metadata"
    (scene.repository / "metadata" / "2.targets.json").unlink()
    shutil.copy(old / "1.targets.json", scene.repository / "metadata" / "2.targets.json")
    shutil.rmtree(scene.home / "repository" / "metadata")
    scene.refused(scene.repository, "repository.digest")


@pytest.mark.parametrize("role", ["targets", "snapshot"])
def test_s04_files_of_different_moments_are_refused(scene: Scene, role: str) -> None:
    shutil.copy(scene.old / "metadata" / f"1.{role}.json", scene.repository / "metadata" / f"2.{role}.json")
    shutil.rmtree(scene.home / "repository" / "metadata")
    scene.refused(scene.repository, "repository.digest")


def test_s04_an_old_timestamp_beside_new_files_is_refused(scene: Scene) -> None:
    shutil.copy(scene.old / "metadata" / "timestamp.json", scene.repository / "metadata" / "timestamp.json")
    scene.refused(scene.repository, "repository.rollback")


def test_s04_an_expired_timestamp_is_refused(scene: Scene) -> None:
    refresh_repository(scene.owner_home, now=now() - timedelta(days=2))
    scene.refused(scene.repository, "repository.expired")
    refresh_repository(scene.owner_home, now=now())
    received(scene.home, scene.repository)


@pytest.mark.parametrize(
    ("ago", "what"), [(timedelta(days=31), "snapshot"), (timedelta(days=91), "targets"), (timedelta(days=366), "root")]
)
def test_s04_each_roles_end_is_an_end(tmp_path: Path, ago: timedelta, what: str) -> None:
    """The owner kept renewing the timestamp alone, with the clock of today."""
    owner_home = new_owner_home(tmp_path / "owner")
    sealed = seal_small_version(owner_home)
    publish(owner_home, sealed, now=now() - ago)
    home = tmp_path / "clinic"
    new_data_owner_home(owner_home, home)
    with pytest.raises(VerificationError, match=r"timestamp\.json is expired.*\[repository\.expired\]|Final root"):
        received(home, owner_home / "repository")
    if what != "snapshot":  # which is renewed with the timestamp
        refresh_repository(owner_home, now=now())
        with pytest.raises(VerificationError, match=rf"{what}.* is expired.*\[repository\.expired\]"):
            received(home, owner_home / "repository")
    publish(owner_home, sealed, now=now())
    with pytest.raises(FetchError, match="no grant"):  # that is, the repository is accepted again
        received(home, owner_home / "repository")


def test_s04_a_clock_that_was_set_back_does_not_make_old_files_fresh(scene: Scene) -> None:
    """What a wrong clock of this machine would let in: ends that have long passed."""
    for hours in (2, 24 * 365 * 30):
        with pytest.raises(VerificationError, match=r"set the clock \[repository\.clock\]"):
            received(scene.home, scene.repository, at=now() - timedelta(hours=hours))
    (scene.home / "repository" / "newest.json").unlink()
    with pytest.raises(VerificationError, match=r"was renewed on .* set the clock \[repository\.clock\]"):
        received(scene.home, scene.repository, at=now() - timedelta(hours=2))


def test_s04_a_clock_an_hour_off_is_no_attack(scene: Scene) -> None:
    for minutes in (-50, 0, 50):
        received(scene.home, scene.repository, at=now() + timedelta(minutes=minutes))


def test_s04_two_bundles_of_one_version_are_refused(scene: Scene) -> None:
    """An owner's machine restored from a backup seals version 2 again: no client gets either by chance."""
    mark = scene.home / "repository" / "newest.json"
    seen = json.loads(mark.read_bytes())
    mark.write_bytes(canonical_json({**seen, "digest": "0" * 64}))
    scene.refused(scene.repository, "repository.equivocation")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data.replace(b'"version":2', b'"version":true'),
        lambda data: data + b"\n",
    ],
)
def test_s04_a_damaged_mark_is_no_leave_to_go_back(scene: Scene, damage: Callable[[bytes], bytes]) -> None:
    mark = scene.home / "repository" / "newest.json"
    mark.write_bytes(damage(mark.read_bytes()))
    scene.refused(scene.old, "repository.mark")


def test_s04_a_source_that_hides_the_newest_files_gives_nothing_else(scene: Scene) -> None:
    shutil.rmtree(scene.home / "repository" / "metadata")
    (scene.repository / "metadata" / "2.snapshot.json").unlink()
    with pytest.raises(FetchError, match=r"2\.snapshot\.json is not there"):
        received(scene.home, scene.repository)
