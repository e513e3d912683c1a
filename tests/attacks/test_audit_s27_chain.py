"""S27 of the threat model: an audit log that was edited, cut, added to or reordered names the line; so does a fork.

The attacker may write the file and make every digest in it right; what it cannot do is sign for the owner, or change
the heads that members keep.
"""

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fl_server.audit_log import AuditLog, create_audit_log
from fl_server.chain_file import ChainHead, head_path, write_head
from scaleot_core.bundle import generate_signing_key, save_verifying_key
from scaleot_core.bundle.hash_chain import NO_LINE, read_line, write_line
from tests.support.verbs import scaleot

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
OWNER = generate_signing_key()
Lines = list[bytes]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of six lines, the owner's public key beside it, and the head that a member kept."""
    path = tmp_path / "audit.jsonl"
    save_verifying_key(OWNER.public, tmp_path / "owner.pub")
    create_audit_log(path, OWNER.public, now=NOW)
    for number in range(5):
        AuditLog(path).append("round.committed", {"round": number}, now=NOW)
    (tmp_path / "member.head").write_bytes(AuditLog(path).signed_head(OWNER, now=NOW))
    return path


def verify(path: Path, *heads: Path) -> int:
    options = [option for head in heads for option in ("--head", str(head))]
    key = ["--owner-public-key", str(path.parent / "owner.pub")] if heads else []
    return scaleot("audit-log", "verify", path, *options, *key)


def chained(lines: Lines) -> Lines:
    """Returns the lines, each forged to follow the one before, with every digest right."""
    previous, forged = NO_LINE, Lines()
    for number, line in enumerate(lines, 1):
        forged.append(write_line(json.loads(line)["entry"], number=number, previous=previous))
        _, previous = read_line(forged[-1][:-1], number=number, previous=previous)
    return forged


def edited(line: bytes) -> bytes:
    return line.replace(b'"round":1', b'"round":7')


TAMPERINGS: dict[str, tuple[Callable[[Lines], Lines], int]] = {
    "edit": (lambda lines: [*lines[:2], edited(lines[2]), *lines[3:]], 3),
    "drop": (lambda lines: [*lines[:2], *lines[3:]], 3),
    "insert": (lambda lines: [*lines[:3], lines[2], *lines[3:]], 4),
    "reorder": (lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]], 3),
    "truncate": (lambda lines: lines[:4], 5),
}


def install(log: Path, lines: Lines) -> None:
    """Writes lines, and the head that a writer of them would have left."""
    log.write_bytes(b"".join(lines))
    last: dict[str, Any] = json.loads(lines[-1])
    write_head(log, ChainHead(last["number"], last["sha256"]))


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_s27_a_change_of_the_lines_is_named_by_the_line(
    log: Path, tampering: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, line = TAMPERINGS[tampering]
    log.write_bytes(b"".join(change(log.read_bytes().splitlines(keepends=True))))
    assert verify(log) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{log}, line {line}: " in captured.err


def test_s27_a_line_added_at_the_end_of_a_copy_is_named_by_its_number(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a home it would be the rest of an interrupted write, which no head names and the next append removes."""
    log.write_bytes(log.read_bytes() + log.read_bytes().splitlines(keepends=True)[5])
    assert verify(log) == 0
    head_path(log).unlink()
    assert verify(log) == 3
    assert f"{log}, line 7: " in capsys.readouterr().err


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_s27_a_forged_chain_with_every_digest_right_is_found_by_a_kept_head(
    log: Path, tampering: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, _ = TAMPERINGS[tampering]
    lines = chained(change(log.read_bytes().splitlines(keepends=True)))
    if tampering == "insert":
        lines = lines[:6]
    install(log, lines)
    assert verify(log) == 0, "the forger made a chain that holds in itself"
    capsys.readouterr()
    assert verify(log, log.parent / "member.head") == 3
    shortened = len(lines) < 6
    expected = f"line {len(lines) + 1}: it is missing" if shortened else "line 6: the owner signed it as"
    assert expected in capsys.readouterr().err


def test_s27_a_fork_is_shown_by_the_heads_of_two_members(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The owner itself keeps two logs, and shows each member one of them."""
    other = log.parent / "other" / "audit.jsonl"
    other.parent.mkdir()
    for source in (log, head_path(log), log.parent / "owner.pub"):
        shutil.copy(source, other.parent)
    heads = []
    for path, outcome in ((log, "refused"), (other, "accepted")):
        AuditLog(path).append("update", {"organisation": "clinic-a", "outcome": outcome}, now=NOW)
        heads.append(path.parent / "their.head")
        heads[-1].write_bytes(AuditLog(path).signed_head(OWNER, now=NOW))
        AuditLog(path).append("round.committed", {"round": 5}, now=NOW)
    for path, own, others in ((log, *heads), (other, *reversed(heads))):
        assert verify(path, own, log.parent / "member.head") == 0
        capsys.readouterr()
        assert verify(path, own, others) == 3
        assert "line 7: the owner signed it as" in (fault := capsys.readouterr().err)
        assert "there are two logs, of which neither extends the other" in fault


def test_s27_an_untouched_log_verifies_with_its_heads_and_prints_the_last_line(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(log, log.parent / "member.head") == 0
    head = AuditLog(log).head
    assert capsys.readouterr().out == f"{head.number} {head.sha256}\n"
