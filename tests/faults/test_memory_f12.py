"""Acceptance case F12: the memory of a process is bounded, as by a cgroup, and what it did not finish is not lost.

The bound is ``RLIMIT_AS``, a little above what the process has when the work begins; the processes are real.
"""

import os
import resource
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import Message

from fl_clients.session import EmulatorShelf, take_part
from fl_server.owner import read_rounds
from fl_server.rounds import conduct_rounds
from scaleot_core.federation.messages import Payload, digest_of
from scaleot_core.privacy.ledger_file import read_chain
from scaleot_core.privacy.ledger_lines import Committed, Reserved
from scaleot_core.progress import SilentReporter
from tests.support.federations import Federation, build_federation
from tests.support.grids import respoken, set_stage
from tests.support.private_updates import instructions, private_federation
from tests.support.round_lives import run

MEBIBYTE = 1 << 20
NOW = datetime.now(UTC)
BATCH = 64
SHELF = EmulatorShelf()


def allow_more(size_bytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + size_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def answer(home: Path, request: Payload, sent: Path, more_bytes: int | None) -> None:
    """Takes part, in so much more memory than there is now, and notes what would be sent."""
    if more_bytes is not None:
        allow_more(more_bytes)
    sent.write_text(digest_of(take_part(home, request, SHELF, now=NOW).tensors))


def undisturbed(federation: Federation) -> str:
    """The digest of what is sent without a bound; the emulator is open from then on."""
    sent = federation.data_owners_directory / "undisturbed"
    answer(federation.data_owner_directories[0], instructions(federation, batch_size=BATCH), sent, None)
    federation.begin_again()
    return sent.read_text()


def test_f12_a_trainer_out_of_memory_leaves_nothing_half_done_and_the_next_attempt_completes(tmp_path: Path) -> None:
    federation = build_federation(tmp_path, clients=1, examples=[BATCH])
    home, sent, expected = federation.data_owner_directories[0], tmp_path / "sent", undisturbed(federation)
    assert run(answer, home, instructions(federation, batch_size=BATCH), sent, 0) != 0
    assert not sent.exists() and list((home / "releases").glob("*/*")) == []
    assert run(answer, home, instructions(federation, batch_size=BATCH, attempt=2), sent, None) == 0
    assert sent.read_text() == expected


def test_f12_a_private_trainer_out_of_memory_commits_once_in_the_next_attempt(tmp_path: Path) -> None:
    federation = private_federation(tmp_path, "dp-sgd", clients=2, examples=[BATCH, BATCH])
    home, sent = federation.data_owner_directories[0], tmp_path / "sent"
    other = instructions(federation, client="clinic-1", batch_size=BATCH)
    answer(federation.data_owner_directories[1], other, sent, None)
    sent.unlink()
    assert run(answer, home, instructions(federation, batch_size=BATCH), sent, 0) != 0
    assert not sent.exists()
    assert run(answer, home, instructions(federation, batch_size=BATCH, attempt=2), sent, None) == 0
    entries = read_chain(home / "ledger").entries
    (committed,) = [entry for entry in entries if isinstance(entry, Committed)]
    assert committed.release_sha256 == sent.read_text()
    assert len([entry for entry in entries if isinstance(entry, Reserved)]) in (1, 2), "what was drawn was charged"


def serve(directory: Path) -> None:
    """Conducts a round in which one client sends 128 MiB, with room for them and less than half as much again."""
    oversized = bytes(128 * MEBIBYTE)

    def grow(reply: Message) -> Message:
        return respoken(reply, blob=oversized)

    stage = set_stage(directory, faults={2: grow})
    allow_more(56 * MEBIBYTE)
    conduct_rounds(stage.exchange, directory, SilentReporter())


def test_f12_a_server_short_of_memory_refuses_an_oversized_update_and_goes_on(tmp_path: Path) -> None:
    assert run(serve, tmp_path) == 0
    (record,) = read_rounds(tmp_path)
    assert record.clients == ("clinic-0", "clinic-1")
    assert [(one.client, one.reason) for one in record.rejected] == [("clinic-2", "E_SIZE")]
