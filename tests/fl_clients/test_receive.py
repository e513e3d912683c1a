"""The whole way of an emulator between two homes: published, refreshed, fetched, granted, opened."""

import base64
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fl_clients.grpc_source import grpc_source
from fl_clients.sources import HttpsSource, Source
from fl_server.distribution import serve_bundles
from fl_server.grants import issue_grants
from fl_server.published_index import published_index
from scaleot_core.bundle import Identity, generate_identity
from scaleot_core.errors import FetchError, VerificationError
from tests.support.bundles import FILES
from tests.support.certificates import Authority
from tests.support.https_files import https_server
from tests.support.owner_homes import (
    CLINIC,
    new_data_owner_home,
    new_owner_home,
    opened,
    owner_of,
    publish_small_version,
    received,
)
from tests.support.verbs import scaleot

OTHER = "clinic-b"


class Two:
    """A model owner's home with version 1 published and granted, and a clinic's."""

    def __init__(self, root: Path) -> None:
        self.owner_home = new_owner_home(root / "owner")
        self.sealed = publish_small_version(self.owner_home)
        self.home = root / "clinic"
        self.identity = new_data_owner_home(self.owner_home, self.home)
        self.authority = Authority(root / "authority")
        self.server = self.authority.issue("server")
        self.grants = self.grant()

    @property
    def repository(self) -> Path:
        return self.owner_home / "repository"

    def grant(self, identity: Identity | None = None) -> dict[str, Path]:
        mine = (identity or self.identity).recipient
        return issue_grants(self.owner_home, {CLINIC: mine, OTHER: generate_identity().recipient})

    def open(self) -> dict[str, bytes]:
        return opened(self.home, self.identity, owner_of(self.owner_home))

    @contextmanager
    def served_to(self, name: str, *, allowed: tuple[str, ...] = (CLINIC, OTHER)) -> Iterator[Source]:
        with (
            serve_bundles(
                published_index(self.owner_home), "127.0.0.1:0", tls=self.server, is_allowed=allowed.__contains__
            ) as port,
            grpc_source(f"127.0.0.1:{port}", self.authority.issue(name)) as source,
        ):
            yield source


@pytest.fixture
def two(tmp_path: Path) -> Two:
    return Two(tmp_path)


def test_an_emulator_comes_whole_over_grpc_with_the_grant_of_the_organisation_that_the_certificate_names(
    two: Two,
) -> None:
    with two.served_to(CLINIC) as source:
        fetched = received(two.home, source)
    assert (fetched.digest, fetched.version) == (two.sealed.bundle.digest, 1)
    assert two.open() == FILES
    assert (two.home / "grant.json").stat().st_mode & 0o777 == 0o600


def test_an_emulator_comes_whole_from_a_folder_with_a_grant_that_was_handed_over(two: Two) -> None:
    shutil.copy(two.grants[CLINIC], two.home / "grant.json")
    received(two.home, two.repository)
    assert two.open() == FILES


def test_an_emulator_comes_whole_from_a_static_https_server(two: Two) -> None:
    shutil.copy(two.grants[CLINIC], two.home / "grant.json")
    with https_server(two.repository, two.server) as server:
        received(two.home, HttpsSource(server.url, authority=two.authority.path))
    assert two.open() == FILES


def test_the_verb_fetches_from_a_folder_and_over_https_and_asks_for_a_grant(
    two: Two, capsys: pytest.CaptureFixture[str]
) -> None:
    (two.home / "data-owner.toml").write_text(f'organisation = "{CLINIC}"\ndata = "notes.jsonl"\n')
    assert scaleot("fetch", two.home, "--from", two.repository) == 1
    assert "there is no grant for bundle" in capsys.readouterr().err
    shutil.copy(two.grants[CLINIC], two.home / "grant.json")
    assert scaleot("fetch", two.home, "--from", two.repository) == 0
    assert capsys.readouterr().out.startswith(f"version 1, bundle {two.sealed.bundle.digest}: ")
    assert two.open() == FILES
    with https_server(two.repository, two.server) as server:
        assert scaleot("fetch", two.home, "--from", server.url, "--authority", two.authority.path) == 0
        assert capsys.readouterr().out.endswith(": 0.0 MB came\n")
        assert scaleot("fetch", two.home, "--from", server.url.replace("https", "http")) == 2
    assert scaleot("fetch", two.home, "--from", two.home / "none") == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_newer_version_is_served_without_a_restart_and_takes_the_place_of_the_older_one(two: Two) -> None:
    newer = {**FILES, "emulator.safetensors": b"another emulator"}
    with two.served_to(CLINIC) as source:
        first = received(two.home, source)
        publish_small_version(two.owner_home, newer)
        two.grant()
        second = received(two.home, source)
    assert (first.version, second.version) == (1, 2)
    assert two.open() == newer
    assert not first.path.exists()


def test_a_second_receipt_moves_nothing_and_changes_nothing(two: Two) -> None:
    with two.served_to(CLINIC) as source:
        received(two.home, source)
        again = received(two.home, source)
    assert again.moved_bytes == 0
    assert two.open() == FILES


def test_no_organisation_gets_anothers_grant(two: Two) -> None:
    """Each asks for the same bundle under its own certificate; the name it claims for itself decides nothing."""
    with two.served_to(OTHER) as source, pytest.raises(VerificationError, match=r"grant\.organisation"):
        received(two.home, source, organisation=CLINIC)


def test_a_revoked_organisation_is_refused_and_its_grant_is_removed(two: Two) -> None:
    with two.served_to(CLINIC, allowed=(OTHER,)) as source, pytest.raises(FetchError, match="PERMISSION_DENIED"):
        received(two.home, source)
    left = issue_grants(two.owner_home, {OTHER: generate_identity().recipient})
    assert set(left) == {OTHER} and not two.grants[CLINIC].exists()


def test_an_organisation_without_a_grant_is_told_what_to_do_and_keeps_what_was_fetched(two: Two) -> None:
    issue_grants(two.owner_home, {OTHER: generate_identity().recipient})
    with (
        two.served_to(CLINIC) as source,
        pytest.raises(FetchError, match=r"no grant for bundle .* Ask the model owner"),
    ):
        received(two.home, source)
    assert not (two.home / "bundles" / "current").exists()
    two.grant()
    with two.served_to(CLINIC) as source:
        assert received(two.home, source).moved_bytes == 0
    assert two.open() == FILES


def test_a_grant_for_an_older_bundle_does_not_replace_the_one_in_use(two: Two) -> None:
    shutil.copy(two.grants[CLINIC], two.home / "grant.json")
    received(two.home, two.repository)
    publish_small_version(two.owner_home)
    with pytest.raises(VerificationError, match=r"grant\.bundle"):
        received(two.home, two.repository)
    assert two.open() == FILES  # the first version stays in use until the second one has its grant


def test_the_repository_names_no_organisation_and_holds_no_grant(two: Two) -> None:
    """T7: who takes part is not to be learnt from what anyone may read."""
    two.grant()
    contents = [path.read_bytes() for path in two.repository.rglob("*") if path.is_file()]
    payloads = [
        base64.b64decode(found) for content in contents for found in re.findall(rb'"payload":"([^"]+)"', content)
    ]
    assert len(payloads) == 1, "the manifest, in its envelope"
    for content in (*contents, *payloads):
        assert CLINIC.encode() not in content and OTHER.encode() not in content
        assert b"grant+json" not in content
