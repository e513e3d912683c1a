"""The versions of a home: numbered upwards, whole or not there, made by one process at a time."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from filelock import FileLock

from fl_server.sealed_versions import PLAIN_PREFIX, SealedRecord, next_version, read_sealed
from scaleot_core.adapters.spec import AdapterKind
from scaleot_core.bundle import issue_grant, load_identity, open_bundle, read_bundle, verify_bundle
from scaleot_core.errors import InputError, VerificationError
from tests.support.bundles import FILES
from tests.support.owner_homes import (
    CLINIC,
    PLAN,
    new_data_owner_home,
    new_owner_home,
    now,
    owner_of,
    publish_small_version,
    seal_small_version,
)

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return new_owner_home(tmp_path / "owner")


def test_versions_are_numbered_upwards_and_the_newest_is_read(home: Path) -> None:
    assert [seal_small_version(home).version for _ in range(2)] == [1, 2]
    assert seal_small_version(home, version=7).version == 7
    assert read_sealed(home).version == 7
    assert read_sealed(home, 2).record.plan == PLAN
    with pytest.raises(InputError, match="version 7: expected one above 7"), next_version(home, 7):
        pytest.fail("it was lent")


def test_a_grant_for_an_organisation_that_comes_later_opens_what_was_sealed_before(home: Path, tmp_path: Path) -> None:
    """The data key that was kept is the bundle's: nothing is encrypted again."""
    publish_small_version(home)
    new_data_owner_home(home, tmp_path / "late")
    identity, sealed = load_identity(tmp_path / "late" / "identity.key"), read_sealed(home, 1)
    grant = issue_grant(
        sealed.bundle,
        owner=owner_of(home),
        organisation=CLINIC,
        recipient=identity.recipient,
        not_after=sealed.record.not_after,
    )
    verified = verify_bundle(read_bundle(sealed.bundle.path), owner_of(home).public, now=now())
    with open_bundle(verified, grant, identity, organisation=CLINIC, now=now()) as opened:
        assert {name: path.read_bytes() for name, path in opened.files.items()} == FILES


def test_what_a_killed_process_left_is_removed_by_the_next(home: Path) -> None:
    seal_small_version(home)
    for left in (f"{PLAIN_PREFIX}abc", ".2.0123.partial"):
        (home / "sealed" / left).mkdir()
        (home / "sealed" / left / "emulator.safetensors").write_bytes(b"plain")
    with next_version(home, None) as (directory, number):
        assert (directory.name, number) == ("2", 2)
        assert {path.name for path in (home / "sealed").iterdir()} == {"1", "lock"}


def test_two_processes_do_not_seal_at_once(home: Path) -> None:
    seal_small_version(home)
    with (
        FileLock(home / "sealed" / "lock"),
        pytest.raises(InputError, match="another process is sealing"),
        next_version(home, None),
    ):
        pytest.fail("it was lent")


def test_a_data_key_that_others_may_read_is_refused(home: Path) -> None:
    seal_small_version(home)
    (home / "sealed" / "1" / "data.key").chmod(0o640)
    with pytest.raises(InputError, match="has mode 0640, expected 0600"):
        read_sealed(home)


def test_a_data_key_that_was_cut_is_refused(home: Path) -> None:
    seal_small_version(home)
    path = home / "sealed" / "1" / "data.key"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(VerificationError, match=r"32 bytes of a data key \[key\.format\]"):
        read_sealed(home)


def test_a_damaged_record_and_a_missing_version_are_named(home: Path) -> None:
    with pytest.raises(InputError, match="no sealed emulator: seal one with scaleot seal"):
        read_sealed(home)
    seal_small_version(home)
    with pytest.raises(InputError, match="no version 4 of the emulator"):
        read_sealed(home, 4)
    (home / "sealed" / "1" / "sealed.json").write_text("{}")
    with pytest.raises(InputError, match=r"sealed\.json cannot be read"):
        read_sealed(home)


def test_no_repr_shows_the_data_key(home: Path) -> None:
    sealed = seal_small_version(home)
    assert sealed.bundle.data_key.secret.hex() not in repr(sealed)
    assert repr(sealed.bundle.data_key.secret) not in repr(sealed)


def test_a_record_of_format_1_is_read_for_ever() -> None:
    record = SealedRecord.model_validate_json((GOLDEN / "sealed-version-1" / "sealed.json").read_bytes())
    assert (record.version, record.adapter.kind, len(record.plan.layers)) == (1, AdapterKind.LORA, 6)
    assert record.not_after == datetime(2027, 2, 23, 17, 2, 59, tzinfo=UTC)
