import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fl_server.audit_log import AuditLog, create_audit_log, read_signed_head, verify_copy
from fl_server.chain_file import head_path
from scaleot_core.bundle import SigningKey, generate_signing_key, save_verifying_key
from scaleot_core.bundle.hash_chain import NO_LINE, write_line
from scaleot_core.errors import ChainError, InputError, VerificationError

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
OWNER = generate_signing_key()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log of an opening and three rounds."""
    path = tmp_path / "audit.jsonl"
    create_audit_log(path, OWNER.public, now=NOW)
    log = AuditLog(path)
    for number in range(3):
        log.append("round.committed", {"round": number}, now=NOW + timedelta(hours=number))
    return path


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    save_verifying_key(OWNER.public, tmp_path / "owner.pub")
    return tmp_path / "owner.pub"


def signed_head(path: Path, directory: Path, owner: SigningKey = OWNER) -> Path:
    """Writes a signed head to a file as the command line prints it."""
    file = directory / f"head-{len(list(directory.glob('head-*')))}"
    file.write_bytes(AuditLog(path).signed_head(owner, now=NOW) + b"\n")
    return file


def test_events_come_back_with_type_time_and_body(path: Path) -> None:
    events = AuditLog(path).events()
    assert [(event.number, event.entry.type) for event in events[1:]] == [(n, "round.committed") for n in (2, 3, 4)]
    assert events[2].entry.body == {"round": 1}
    assert events[2].entry.time == NOW + timedelta(hours=1)
    assert events[0].entry.type == "opened"


def test_an_append_returns_the_head_and_others_append_too(path: Path) -> None:
    one, other = AuditLog(path), AuditLog(path)
    assert one.append("a", {}, now=NOW).number == 5
    head = other.append("b", {"text": "ä", "list": [1, None, True]}, now=NOW)
    assert head.number == 6 == other.head.number and one.head.number == 5
    assert AuditLog(path).head == head


@pytest.mark.parametrize(
    ("type_", "body"), [("A b", {}), ("", {}), ("x" * 65, {}), ("a", {"x": float("nan")}), ("a", {"x": b"bytes"})]
)
def test_an_event_that_cannot_be_written_leaves_the_log_as_it_is(path: Path, type_: str, body: dict[str, Any]) -> None:
    before, log = path.read_bytes(), AuditLog(path)
    with pytest.raises(ValueError, match=r"\S"):
        log.append(type_, body, now=NOW)
    assert path.read_bytes() == before
    assert log.append("a", {}, now=NOW).number == 5


def test_the_verifier_gives_the_head_of_a_log_and_of_a_bare_copy(path: Path, key_file: Path, tmp_path: Path) -> None:
    head = AuditLog(path).head
    first = signed_head(path, tmp_path)
    AuditLog(path).append("later", {}, now=NOW)
    copy = tmp_path / "copy" / "audit.jsonl"
    copy.parent.mkdir()
    shutil.copy(path, copy)
    for file in (path, copy):
        found = verify_copy(file, [first, signed_head(path, tmp_path)], key_file)
        assert found == AuditLog(path).head != head
        assert verify_copy(file, [], None) == found


def test_a_head_that_the_owner_did_not_sign_is_refused(path: Path, key_file: Path, tmp_path: Path) -> None:
    with pytest.raises(VerificationError) as refused:
        verify_copy(path, [signed_head(path, tmp_path, generate_signing_key())], key_file)
    assert refused.value.code == "head.signature"
    with pytest.raises(VerificationError, match=r"head\.json"):
        read_signed_head(b"", OWNER.public)


def test_heads_without_a_key_are_a_wrong_usage(path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--head needs --owner-public-key"):
        verify_copy(path, [signed_head(path, tmp_path)], None)


def test_the_log_of_another_owner_or_another_log_of_this_one_is_refused(
    path: Path, key_file: Path, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger.pub"
    save_verifying_key(generate_signing_key().public, stranger)
    with pytest.raises(ChainError, match="line 1: it is the log of another owner"):
        verify_copy(path, [], stranger)
    other = tmp_path / "other.jsonl"
    create_audit_log(other, OWNER.public, now=NOW)
    with pytest.raises(ChainError, match="the signed head is that of log"):
        verify_copy(other, [signed_head(path, tmp_path)], key_file)


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: {**entry, "type": "closed"},
        lambda entry: {**entry, "body": {}},
        lambda entry: {**entry, "body": {**entry["body"], "format": "scaleot.audit/2"}},
        lambda entry: {**entry, "body": {**entry["body"], "owner": ["a" * 64]}},
    ],
)
def test_a_log_that_does_not_begin_with_its_opening_is_refused(
    path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    first = json.loads(path.read_bytes().splitlines()[0])["entry"]
    head_path(path).unlink()
    path.write_bytes(write_line(change(first), number=1, previous=NO_LINE))
    with pytest.raises(ChainError, match=r"line 1: .*expected the opening of a log in the format scaleot\.audit/1"):
        verify_copy(path, [], None)


def test_an_empty_file_is_no_log(path: Path) -> None:
    head_path(path).unlink()
    path.write_bytes(b"")
    with pytest.raises(ChainError, match="line 1: it is missing"):
        verify_copy(path, [], None)
