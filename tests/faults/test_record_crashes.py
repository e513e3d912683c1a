"""Registry and audit log when the process dies or the disk is full: what was acknowledged is there, and it goes on."""

import random
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fl_server.audit_log import AuditLog, create_audit_log
from fl_server.chain_file import head_path
from scaleot_core.bundle import generate_signing_key

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from fl_server.audit_log import AuditLog
log = AuditLog(Path(sys.argv[1]))
while True:
    head = log.append("round.committed", {"text": "x" * 3000}, now=datetime.now(UTC))
    print(head.number, head.sha256, flush=True)
"""
FULL = """
import resource, sys
from datetime import UTC, datetime
from pathlib import Path
from fl_server.audit_log import AuditLog
from scaleot_core.errors import OutputError
path = Path(sys.argv[1])
log = AuditLog(path)
room = path.stat().st_size + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
try:
    log.append("round.committed", {"text": "x" * 3000}, now=datetime.now(UTC))
except OutputError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(log.append("after", {}, now=datetime.now(UTC)).number)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    create_audit_log(path, generate_signing_key().public, now=NOW)
    return path


def killed_writer(path: Path, after_seconds: float) -> list[tuple[int, str]]:
    """Appends in a process of its own until it is killed, and returns the heads that were acknowledged."""
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        first = process.stdout.readline()
        time.sleep(after_seconds)
        process.send_signal(signal.SIGKILL)
        lines = [first, *process.stdout.read().splitlines(keepends=True)]
    return [(int(line.split()[0]), line.split()[1]) for line in lines if line.endswith("\n")]


def test_no_acknowledged_line_is_lost_however_often_the_writer_is_killed(path: Path) -> None:
    draws = random.Random(7)
    acknowledged: list[tuple[int, str]] = []
    for _ in range(5):
        acknowledged += killed_writer(path, draws.uniform(0, 0.2))
    events = {event.number: event.sha256 for event in AuditLog(path).events()}
    assert len(acknowledged) >= 5
    assert all(events[number] == digest for number, digest in acknowledged)
    assert list(events) == list(range(1, len(events) + 1))
    AuditLog(path).append("after", {}, now=NOW)
    assert not AuditLog(path).events()[-1].entry.body


def test_a_write_that_was_cut_somewhere_is_made_good_by_the_next(path: Path) -> None:
    AuditLog(path).append("first", {}, now=NOW)
    before, head = path.read_bytes(), head_path(path).read_bytes()
    AuditLog(path).append("second", {}, now=NOW)
    line = path.read_bytes()[len(before) :]
    for cut in {*range(0, len(line), 11), 1, len(line) - 1}:
        path.write_bytes(before + line[:cut])
        head_path(path).write_bytes(head)
        assert AuditLog(path).head.number == 2
        assert AuditLog(path).append("third", {}, now=NOW).number == 3
        assert [event.entry.type for event in AuditLog(path).events()] == ["opened", "first", "third"]


@pytest.mark.parametrize("room", [0, 100, 3000])
def test_a_full_disk_is_an_error_and_once_there_is_room_the_log_goes_on(path: Path, room: int) -> None:
    command = [sys.executable, "-c", FULL, str(path), str(room)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"audit log {path} cannot be written: File too large; make room, then try again" in done.stdout
    assert done.stdout.splitlines()[-1] == "2"
    assert [event.entry.type for event in AuditLog(path).events()] == ["opened", "after"]
