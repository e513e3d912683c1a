"""A data owner's view of a repository: what it keeps, what it refuses, and what a hostile source cannot make it ask."""

import json
from pathlib import Path

import pytest
from filelock import FileLock
from tuf.api.metadata import Metadata, TargetFile

from fl_clients.patient_source import PatientSource
from fl_clients.repository import newest_manifest
from fl_clients.sources import FolderSource
from fl_server.repository_files import place_file
from fl_server.repository_keys import signers
from fl_server.repository_state import read_state
from scaleot_core.bundle import generate_signing_key, load_verifying_key
from scaleot_core.bundle.repository import TARGET, Role, target_file
from scaleot_core.errors import FetchError, InputError, OutputError, SourceInterruptedError, VerificationError
from tests.support.kills import no_file_larger_than
from tests.support.owner_homes import new_data_owner_home, new_owner_home, now, publish_small_version


class Two:
    def __init__(self, root: Path) -> None:
        self.owner_home, self.home = new_owner_home(root / "owner"), root / "clinic"
        self.sealed = publish_small_version(self.owner_home)
        new_data_owner_home(self.owner_home, self.home)

    @property
    def repository(self) -> Path:
        return self.owner_home / "repository"

    def refresh(self, source: FolderSource | None = None) -> int:
        patient = PatientSource(source or FolderSource(self.repository), deadline_seconds=3)
        owner = load_verifying_key(self.home / "owner.pub")
        return newest_manifest(patient, self.home, owner=owner, now=now()).signed.manifest.version

    def publish_target(self, target: TargetFile) -> None:
        """What the holders of all online keys and of the targets' could publish, however odd."""
        state = read_state(self.owner_home)
        state.write_targets({target.path: target}, [state.key(Role.TARGETS)], now())
        state.write_snapshot([state.key(Role.SNAPSHOT)], now())
        state.write_timestamp([state.key(Role.TIMESTAMP)], now())


@pytest.fixture
def two(tmp_path: Path) -> Two:
    return Two(tmp_path)


class Recording(FolderSource):
    """A folder that remembers what was asked for, and fails as often as it is told to."""

    def __init__(self, directory: Path, failures: int = 0) -> None:
        super().__init__(directory)
        self.asked: list[str] = []
        self.failures_left = failures

    def repository_file(self, name: str, most_bytes: int, *, timeout_seconds: float) -> bytes:
        self.asked.append(name)
        if self.failures_left:
            self.failures_left -= 1
            raise SourceInterruptedError("the line was cut")
        return super().repository_file(name, most_bytes, timeout_seconds=timeout_seconds)


def test_the_mark_holds_version_digest_and_root_and_only_its_owner_reads_it(two: Two) -> None:
    assert two.refresh() == 1
    mark = two.home / "repository" / "newest.json"
    value = json.loads(mark.read_bytes())
    assert (value["version"], value["digest"], value["root"]) == (1, two.sealed.bundle.digest, 1)
    assert mark.stat().st_mode & 0o777 == 0o600


def test_an_interrupted_source_is_asked_again(two: Two) -> None:
    source = Recording(two.repository, failures=2)
    assert two.refresh(source) == 1
    assert source.asked.count("metadata/2.root.json") == 3


def test_a_refresh_asks_for_few_files_and_for_none_that_it_has(two: Two) -> None:
    two.refresh()
    source = Recording(two.repository)
    two.refresh(source)
    assert set(source.asked) == {"metadata/2.root.json", "metadata/timestamp.json"} | {
        name for name in source.asked if name.startswith("targets/")
    }


def test_a_source_that_is_not_there_is_a_failure_to_fetch_and_no_suspicion(two: Two, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"timestamp\.json is not there"):
        two.refresh(FolderSource(tmp_path / "nowhere"))


def test_a_home_without_a_pinned_root_is_told_where_it_comes_from(two: Two) -> None:
    (two.home / "root.json").unlink()
    with pytest.raises(InputError, match="comes with the model owner's admission"):
        two.refresh()


def test_another_owners_repository_is_refused(two: Two, tmp_path: Path) -> None:
    other = new_owner_home(tmp_path / "stranger")
    publish_small_version(other)
    with pytest.raises(VerificationError, match=r"\[repository\.signature\]"):
        two.refresh(FolderSource(other / "repository"))


def test_a_manifest_that_only_the_repositorys_keys_vouch_for_is_refused(two: Two, tmp_path: Path) -> None:
    """Who has every key of TUF and not the owner's own cannot make an emulator."""
    from scaleot_core.bundle.envelope import sign_statement, verify_statement
    from scaleot_core.bundle.manifest import MANIFEST_TYPE, MAX_ENVELOPE_BYTES

    envelope = (two.sealed.bundle.path / "manifest.dsse.json").read_bytes()
    owner = load_verifying_key(two.home / "owner.pub")
    statement = verify_statement(envelope, MANIFEST_TYPE, owner, kind="bundle", limit_bytes=MAX_ENVELOPE_BYTES)
    forged = sign_statement(statement, MANIFEST_TYPE, generate_signing_key())
    target = TargetFile.from_data(TARGET, forged, ["sha256"])
    place_file(two.repository / target_file(target.hashes["sha256"]), forged)
    two.publish_target(target)
    with pytest.raises(VerificationError, match=r"\[bundle\.signature\]"):
        two.refresh()
    assert not (two.home / "repository" / "newest.json").exists()


def test_a_repository_without_an_emulator_is_refused(two: Two) -> None:
    two.publish_target(TargetFile.from_data("other.json", b"{}", ["sha256"]))
    with pytest.raises(VerificationError, match=r"\[repository\.empty\]"):
        two.refresh()


def test_a_target_too_large_for_a_manifest_is_not_even_asked_for(two: Two) -> None:
    two.publish_target(TargetFile(2**40, {"sha256": "0" * 64}, TARGET))
    source = Recording(two.repository)
    with pytest.raises(VerificationError, match=r"\[repository\.malformed\]"):
        two.refresh(source)
    assert not any(name.startswith("targets/") for name in source.asked)


@pytest.mark.parametrize("name", ["../../owner.key", "/etc/passwd", "00.x", "%2e%2e/owner.key"])
def test_a_hostile_digest_in_the_metadata_leads_to_no_other_file(two: Two, name: str) -> None:
    two.publish_target(TargetFile(10, {"sha256": name}, TARGET))
    source = Recording(two.repository)
    with pytest.raises((FetchError, VerificationError)):
        two.refresh(source)
    assert not any("owner.key" in asked or "passwd" in asked for asked in source.asked)


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b'{"signed":' * 20_000, b"x" * (600 * 1024)])
def test_no_bytes_in_the_place_of_metadata_raise_anything_but_our_errors(two: Two, role: Role, content: bytes) -> None:
    name = {"timestamp": "timestamp.json", "root": "2.root.json"}.get(role, f"1.{role}.json")
    (two.repository / "metadata" / name).write_bytes(content)
    with pytest.raises((VerificationError, FetchError)):
        two.refresh()


def test_damaged_state_of_tuf_heals_itself(two: Two) -> None:
    two.refresh()
    for path in (two.home / "repository" / "metadata").rglob("*.json"):
        if not path.is_symlink():
            path.write_bytes(b"damaged")
    assert two.refresh() == 1


def test_two_processes_do_not_refresh_one_home_at_once(two: Two) -> None:
    two.refresh()
    with FileLock(two.home / "repository" / "lock"), pytest.raises(InputError, match="in use by another process"):
        two.refresh()


def test_f06_a_disk_that_is_full_leaves_the_mark_as_it_was(two: Two) -> None:
    two.refresh()
    mark = (two.home / "repository" / "newest.json").read_bytes()
    publish_small_version(two.owner_home)
    with no_file_larger_than(100), pytest.raises(OutputError, match="cannot be written"):
        two.refresh()
    assert (two.home / "repository" / "newest.json").read_bytes() == mark
    assert two.refresh() == 2


def test_a_delegation_is_not_followed(two: Two) -> None:
    """The targets role alone says what the emulator is, though TUF would let it hand that on."""
    from tuf.api.metadata import DelegatedRole, Delegations

    state = read_state(two.owner_home)
    assert state.targets is not None
    stranger = generate_signing_key()
    keys = {signer.public_key.keyid: signer.public_key for signer in signers(stranger)}
    role = DelegatedRole("thief", list(keys), 1, terminating=False, paths=["emulator/*"])
    state.targets.signed.delegations = Delegations(keys, {"thief": role})
    state.targets.signed.targets = {}
    targets: Metadata = state.targets  # type: ignore[type-arg]
    state._write(targets, Role.TARGETS, [state.key(Role.TARGETS)], now())
    state.write_snapshot([state.key(Role.SNAPSHOT)], now())
    state.write_timestamp([state.key(Role.TIMESTAMP)], now())
    source = Recording(two.repository)
    with pytest.raises(VerificationError, match=r"\[repository\.empty\]"):
        two.refresh(source)
    assert not any("thief" in name for name in source.asked)
