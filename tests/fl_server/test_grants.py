"""One grant for each member of the moment, in a file of its own."""

from pathlib import Path

import pytest

from fl_server.grants import grant_files, issue_grants
from scaleot_core.bundle import generate_identity, load_verifying_key, read_bundle, verify_bundle, verify_grant
from scaleot_core.errors import InputError, VerificationError
from tests.support.owner_homes import CLINIC, new_owner_home, now, publish_small_version, seal_small_version


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = new_owner_home(tmp_path / "owner")
    publish_small_version(home)
    return home


def test_each_member_gets_a_grant_that_opens_for_it_alone(home: Path) -> None:
    members = {CLINIC: generate_identity(), "bank": generate_identity()}
    places = issue_grants(home, {name: identity.recipient for name, identity in members.items()})
    bundle = verify_bundle(
        read_bundle(home / "sealed" / "1" / "bundle"), load_verifying_key(home / "owner.pub"), now=now()
    )
    for name, identity in members.items():
        assert places[name].stat().st_mode & 0o777 == 0o600
        verify_grant(bundle, places[name].read_bytes(), identity, organisation=name, now=now())
    with pytest.raises(VerificationError, match=r"grant\.unwrap"):
        verify_grant(bundle, places["bank"].read_bytes(), members[CLINIC], organisation="bank", now=now())


def test_who_is_no_longer_a_member_loses_its_file_and_a_key_that_changed_gets_another(home: Path) -> None:
    old, new = generate_identity(), generate_identity()
    first = issue_grants(home, {CLINIC: old.recipient, "bank": old.recipient})[CLINIC].read_bytes()
    places = issue_grants(home, {CLINIC: new.recipient})
    assert list(places[CLINIC].parent.iterdir()) == [places[CLINIC]]
    assert places[CLINIC].read_bytes() != first
    assert set(grant_files(home)) == {(CLINIC, places[CLINIC].parent.name)}


def test_only_the_published_version_is_granted_and_earlier_grants_go(home: Path) -> None:
    mine = {CLINIC: generate_identity().recipient}
    first = issue_grants(home, mine)[CLINIC]
    seal_small_version(home)  # sealed, and not published yet
    assert issue_grants(home, mine)[CLINIC] == first
    third = publish_small_version(home)
    assert issue_grants(home, mine)[CLINIC].parent.name == third.bundle.digest
    assert not first.exists()


@pytest.mark.parametrize("name", ["", "../clinic", "a/b", ".hidden", "a" * 65, "Klinik Süd"])
def test_a_name_that_is_no_members_becomes_no_file(home: Path, name: str) -> None:
    with pytest.raises(InputError, match="expected 1 to 64 of"):
        issue_grants(home, {name: generate_identity().recipient})


def test_nothing_is_granted_before_it_is_published(tmp_path: Path) -> None:
    home = new_owner_home(tmp_path / "owner")
    seal_small_version(home)
    with pytest.raises(InputError, match="publish first"):
        issue_grants(home, {})
