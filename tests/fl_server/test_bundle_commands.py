"""An emulator's life by verbs alone: keygen, enrolment, seal, publish, and what a data owner's side verifies."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from scaleot_core.cli import VERBS_GROUP, run
from scaleot_core.compression.plan import LayerPlan
from scaleot_core.config import to_toml
from tests.support.owner_homes import received
from tests.support.tiny_task import tiny_run, write_task


class Shell:
    """Runs verbs in this process and keeps what they print."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *arguments: object, status: int = 0) -> str:
        self._capture.readouterr()
        got = run([str(argument) for argument in arguments], entry_points(group=VERBS_GROUP))
        self.errors = self._capture.readouterr()
        assert got == status, self.errors.err
        return self.errors.out

    def json(self, *arguments: object, status: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", status=status))


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@dataclass(frozen=True)
class Made:
    """A model owner's home with version 1 sealed of a tiny model, and a member's."""

    root: Path

    @property
    def run_file(self) -> Path:
        return self.root / "task" / "owner.toml"

    @property
    def home(self) -> Path:
        return self.root / "owner"

    @property
    def clinic(self) -> Path:
        return self.root / "clinic"

    def copied(self, destination: Path) -> "Made":
        return Made(shutil.copytree(self.root, destination / "made", symlinks=True))


def succeed(arguments: Sequence[object]) -> None:
    assert run([str(argument) for argument in arguments], entry_points(group=VERBS_GROUP)) == 0


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Made:
    from scaleot_core.bundle import load_verifying_key
    from scaleot_core.enrolment.fingerprint import owner_fingerprint, request_fingerprint

    made = Made(tmp_path_factory.mktemp("life"))
    task = made.root / "task"
    task.mkdir()
    made.run_file.write_text(to_toml(tiny_run(write_task(task))), encoding="utf-8")
    succeed(["keygen", made.home, "--host", "localhost"])
    succeed(["org", "init", made.clinic, "--organisation", "clinic-a", "--data", task / "train.jsonl"])
    request = made.clinic / "enrolment.json"
    approve = ["org", "approve", made.home, request, "--distribution", "localhost:9443", "--fleet", "localhost:9092"]
    admission = made.root / "clinic-a.admission.json"
    fingerprint = request_fingerprint(request.read_bytes())
    succeed([*approve, "--fingerprint", fingerprint, "--out", admission])
    owner = owner_fingerprint(load_verifying_key(made.home / "owner.pub"))
    succeed(["org", "accept", made.clinic, admission, "--fingerprint", owner])
    succeed(["seal", made.run_file, "--home", made.home])
    return made


@pytest.fixture
def made(original: Made, tmp_path: Path) -> Made:
    return original.copied(tmp_path)


def test_an_emulator_goes_from_the_run_file_to_a_members_home_by_verbs(made: Made, shell: Shell) -> None:
    published = shell.json("publish", made.home)
    assert (published["version"], published["members"]) == (1, ["clinic-a"])
    assert set(published["expires"]) == {"root", "targets", "snapshot", "timestamp"}
    grant = made.home / "grants" / published["digest"] / "clinic-a.grant.json"
    shutil.copy(grant, made.clinic / "grant.json")
    assert received(made.clinic, made.home / "repository").digest == published["digest"]
    verified = shell.json("verify", made.clinic / "bundles/current", "--owner-public-key", made.clinic / "owner.pub")
    assert (verified["kind"], verified["version"]) == ("bundle", 1)
    inside = shell.json(
        *("inspect", made.clinic / "bundles/current", "--owner-public-key", made.clinic / "owner.pub"),
        *("--grant", made.clinic / "grant.json", "--identity-key", made.clinic / "identity.key"),
        *("--organisation", "clinic-a"),
    )
    assert {file["name"] for file in inside["inner"]["files"]} >= {"config.json", "emulator.safetensors", "plan.json"}
    record = json.loads((made.home / "sealed" / "1" / "sealed.json").read_bytes())
    assert LayerPlan.from_json(inside["inner"]["model"]["plan"]) == LayerPlan.from_json(record["layers"])
    assert shell("audit-log", "verify", made.home / "audit.jsonl")
    lines = (made.home / "audit.jsonl").read_text().splitlines()
    assert "publish.version" in lines[-1] and published["digest"] in lines[-1]


def test_publish_keeps_as_many_versions_as_it_is_told_here_and_in_the_copy_and_says_which_are_gone(
    made: Made, shell: Shell
) -> None:
    copy = made.root / "copy"
    assert shell("publish", made.home, "--to", copy)
    assert shell("seal", made.run_file, "--home", made.home)
    assert shell.json("publish", made.home, "--to", copy, "--keep", "2")["removed"] == []
    published = shell.json("publish", made.home, "--to", copy, "--keep", "1")
    assert (published["version"], published["removed"]) == (2, [1])
    for repository in (made.home / "repository", copy):
        assert len(list((repository / "targets").rglob("*.json"))) == 1
        assert shell("verify", repository, "--owner-public-key", made.home / "owner.pub")
    assert {path.name for path in (made.home / "sealed").iterdir()} == {"2", "lock"}
    assert "publish.prune" in (made.home / "audit.jsonl").read_text().splitlines()[-1]
    assert "versions removed: none" in shell("publish", made.home, "--refresh", "--keep", "1")
    assert shell("audit-log", "verify", made.home / "audit.jsonl")


def test_seal_makes_the_next_version_with_everything_that_the_run_needs(made: Made, shell: Shell) -> None:
    record = shell.json("seal", made.run_file, "--home", made.home, "--set", "emulator.replaced_layer_share=0.5")
    assert record["version"] == 2
    directory = made.home / "sealed" / "2"
    assert {path.name for path in directory.iterdir()} == {
        "bundle",
        "data.key",
        "importance",
        "initial_adapter.safetensors",
        "run.toml",
        "sealed.json",
    }
    assert (directory / "data.key").stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    assert record["emulator"]["size_share"] < 1
    assert {path.name for path in (made.home / "sealed").iterdir()} == {"1", "2", "lock"}, "no plaintext stays"
    first, second = (made.home / "sealed" / number / "data.key" for number in ("1", "2"))
    assert first.read_bytes() != second.read_bytes(), "a revoked member's data key opens no later version"
    [disclosure] = (made.home / "disclosure").glob("disclosure-*.json")
    assert record["digest"] in disclosure.read_text() and disclosure.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("version", [1, 0])
def test_seal_refuses_a_version_that_is_not_above_the_newest_before_any_work(
    made: Made, shell: Shell, version: int
) -> None:
    shell("seal", made.run_file, "--home", made.home, "--version", version, status=2)
    assert "above 1" in shell.errors.err or "0 is not in the range" in shell.errors.err


def test_seal_without_a_home_says_what_is_missing(made: Made, shell: Shell, tmp_path: Path) -> None:
    shell("seal", made.run_file, "--home", tmp_path / "nowhere", status=2)
    assert "owner.key cannot be read" in shell.errors.err


def test_a_seal_that_fails_leaves_nothing(made: Made, shell: Shell) -> None:
    shell("seal", made.run_file, "--home", made.home, "--set", "emulator.num_adapter_layers=7", status=2)
    assert {path.name for path in (made.home / "sealed").iterdir()} == {"1", "lock"}


def test_publish_before_seal_says_what_to_do(shell: Shell, tmp_path: Path) -> None:
    home = tmp_path / "owner"
    shell("keygen", home)
    shell("publish", home, status=2)
    assert "seal one with scaleot seal FILE.toml" in shell.errors.err


def test_publish_refresh_renews_and_rotate_replaces_and_copies_follow(made: Made, shell: Shell, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shell("publish", made.home, "--to", copy)
    before = (copy / "metadata" / "timestamp.json").read_bytes()
    shell("publish", made.home, "--refresh", "--to", copy)
    assert (copy / "metadata" / "timestamp.json").read_bytes() != before
    shell("publish", made.home, "--rotate", "timestamp", "--to", copy)
    shell("publish", made.home, "--refresh", "--to", copy)
    verified = shell.json(
        "verify", copy, "--owner-public-key", made.home / "owner.pub", "--root", made.clinic / "root.json"
    )
    assert verified["root"] == {"first": 1, "newest": 2, "is_pinned": True}
    assert "publish.rotate" in (made.home / "audit.jsonl").read_text()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--refresh", "--rotate", "root"], "each ask for something of their own"),
        (["--rotate", "roots"], "expected one of root, targets, snapshot, timestamp, got roots"),
        (["--version", "9"], "no version 9"),
    ],
)
def test_publish_refuses_what_it_cannot_do(made: Made, shell: Shell, options: list[str], told: str) -> None:
    shell("publish", made.home, *options, status=2)
    assert told in shell.errors.err


def test_a_revoked_member_has_no_grant_for_what_is_published_next(made: Made, shell: Shell) -> None:
    assert shell.json("publish", made.home)["members"] == ["clinic-a"]
    shell("org", "revoke", made.home, "clinic-a", "--from-round", "0", "--reason", "left")
    published = shell.json("publish", made.home)
    assert published["members"] == []
    assert list((made.home / "grants" / published["digest"]).iterdir()) == []


def test_verify_names_the_failed_check_and_leaves_with_3(made: Made, shell: Shell, tmp_path: Path) -> None:
    from scaleot_core.bundle import generate_signing_key, save_verifying_key

    shell("publish", made.home)
    repository = made.home / "repository"
    told = shell("verify", repository, "--owner-public-key", made.home / "owner.pub")
    assert "its own root 1" in told and "--root" in told
    save_verifying_key(generate_signing_key().public, tmp_path / "stranger.pub")
    shell("verify", repository, "--owner-public-key", tmp_path / "stranger.pub", status=3)
    assert "[bundle.signature]" in shell.errors.err
    victim = max((repository / "objects").iterdir(), key=lambda path: path.stat().st_size)
    damaged = bytearray(victim.read_bytes())
    damaged[100] ^= 1
    victim.unlink()  # it has a second name in sealed/
    victim.write_bytes(damaged)
    shell("verify", repository, "--owner-public-key", made.home / "owner.pub", status=3)
    assert "[object.block]" in shell.errors.err
    shell("verify", made.home / "sealed" / "1" / "bundle", "--owner-public-key", made.home / "owner.pub")
    timestamp = repository / "metadata" / "timestamp.json"
    timestamp.write_bytes(timestamp.read_bytes()[:-1])
    shell("verify", repository, "--owner-public-key", made.home / "owner.pub", status=3)
    assert "[repository.malformed]" in shell.errors.err


def test_inspect_shows_the_outside_to_anyone_and_says_that_it_is_not_verified(made: Made, shell: Shell) -> None:
    shell("publish", made.home)
    for path in (made.home / "repository", made.home / "sealed" / "1" / "bundle"):
        told = shell("inspect", path)
        assert "NO: anyone may have written this" in told and "(encrypted)" in told
        assert "config.json" not in told
        document = shell.json("inspect", path)
        assert document["inner"] is None and document["verified"] is False
        assert document["manifest"]["version"] == 1 and "inner" not in document["manifest"]


def test_inspect_opens_no_grant_without_the_owners_key(made: Made, shell: Shell) -> None:
    bundle = made.home / "sealed" / "1" / "bundle"
    shell("inspect", bundle, "--grant", made.clinic / "grant.json", status=2)
    assert "--owner-public-key, --identity-key and --organisation" in shell.errors.err


def test_inspect_shows_the_inside_to_whom_it_is_granted_and_to_nobody_else(made: Made, shell: Shell) -> None:
    digest = shell.json("publish", made.home)["digest"]
    asked = ["inspect", made.home / "repository", "--owner-public-key", made.home / "owner.pub"]
    asked += ["--grant", made.home / "grants" / digest / "clinic-a.grant.json"]
    mine = [*asked, "--identity-key", made.clinic / "identity.key"]
    told = shell(*mine, "--organisation", "clinic-a")
    assert "yes, every byte" in told and "emulator.safetensors" in told
    shell(*mine, "--organisation", "clinic-b", status=3)
    assert "[grant.organisation]" in shell.errors.err
    other = made.root / "other"
    shell("org", "init", other, "--organisation", "clinic-a", "--data", made.root / "task" / "train.jsonl")
    shell(*asked, "--identity-key", other / "identity.key", "--organisation", "clinic-a", status=3)
    assert "[grant.unwrap]" in shell.errors.err
