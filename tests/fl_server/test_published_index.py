"""What a service gives of a home: all that is published and granted, as soon as it is, and nothing in between."""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fl_server.grants import issue_grants
from fl_server.published_index import published_index
from fl_server.repository import create_repository, refresh_repository
from scaleot_core.bundle import generate_identity
from scaleot_core.bundle.repository import is_repository_file
from scaleot_core.errors import InputError
from tests.support.owner_homes import CLINIC, new_owner_home, now, publish_small_version, served_digests


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = new_owner_home(tmp_path / "owner")
    publish_small_version(home)
    return home


def test_the_index_holds_every_small_file_and_every_object(home: Path) -> None:
    second = publish_small_version(home)
    index = published_index(home)()
    assert second.bundle.digest in served_digests(index) and len(served_digests(index)) == 2
    on_disk = {path.relative_to(home / "repository").as_posix() for path in (home / "repository").rglob("*.json")}
    assert set(index.files) == on_disk and all(map(is_repository_file, index.files))
    assert set(index.objects) == {path.name for path in (home / "repository" / "objects").iterdir()}


def test_what_is_published_renewed_or_granted_later_is_given_at_the_next_request(home: Path) -> None:
    index = published_index(home)
    before = index()
    assert index() is before, "nothing is read again while nothing changes"
    refresh_repository(home, now=now())
    renewed = index()
    assert renewed.files["metadata/timestamp.json"] != before.files["metadata/timestamp.json"]
    issue_grants(home, {CLINIC: generate_identity().recipient})
    (first,) = served_digests(index())
    assert set(index().grants) == {(CLINIC, first)}
    issue_grants(home, {})
    assert index().grants == {}
    second = publish_small_version(home)
    assert served_digests(index()) == {first, second.bundle.digest}


def test_a_repository_that_cannot_be_read_leaves_the_index_as_it_was(home: Path) -> None:
    index = published_index(home)
    before = index()
    (home / "repository" / "metadata" / "timestamp.json").rename(home / "timestamp.json")
    assert index() is before
    (home / "timestamp.json").rename(home / "repository" / "metadata" / "timestamp.json")
    os.utime(home / "repository" / "metadata")
    assert index().files == before.files


def test_folders_that_vanish_while_they_are_looked_through_fail_no_request(home: Path) -> None:
    index, grants, is_over = published_index(home), home / "grants", threading.Event()
    before = index()

    def churn() -> None:
        while not is_over.is_set():
            for number in range(8):
                (grants / f"passing-{number}" / "below").mkdir(parents=True)
            for number in range(8):
                shutil.rmtree(grants / f"passing-{number}")

    with ThreadPoolExecutor(1) as pool:
        churned = pool.submit(churn)
        try:
            assert all(index().files == before.files for _ in range(400))
        finally:
            is_over.set()
            churned.result()


def test_what_lies_there_besides_is_not_served(home: Path) -> None:
    (home / "repository" / "metadata" / "notes.json").write_text("private")
    (home / "repository" / "metadata" / ".1.root.json.0a.partial").write_text("half")
    assert all(map(is_repository_file, published_index(home)().files))


def test_nothing_published_is_nothing_to_serve(tmp_path: Path) -> None:
    home = new_owner_home(tmp_path / "owner")
    create_repository(home, now=now())
    with pytest.raises(InputError, match="nothing to serve: publish first"):
        published_index(home)
