"""Acceptance cases F02 and F03: a data owner's process dies while it trains, and while its update is on its way out.

Updates travel as one Flower message, which a dead trainer never sent. So F03's chunks are the writes that stand between
training and that message: the release, or the ledger's lines. The process is real and is killed by SIGKILL; what left
it stands in a file that no crash touches.
"""

import os
import random
import signal
from datetime import UTC, datetime
from pathlib import Path

from torch.optim.optimizer import register_optimizer_step_post_hook

from fl_clients.session import EmulatorShelf, take_part
from scaleot_core.federation.messages import Payload, digest_of
from scaleot_core.privacy.ledger_file import read_chain
from scaleot_core.privacy.ledger_lines import Committed, Reserved
from tests.support.federations import Federation, build_federation
from tests.support.kills import FORK, every_kill
from tests.support.outside import tell_outside
from tests.support.private_updates import instructions, private_federation

NOW = datetime.now(UTC)
SHELF = EmulatorShelf()
"""Filled before the first death: the children inherit the opened emulator, and no death is spent on opening it."""
STEPS = 12
KILLS = 30
OWN_PRIVACY = """
[privacy]
epsilon = 100.0
delta = 1e-3
mechanisms = ["dp-sgd"]
noise_multiplier = 2.0
"""
"""Room for every death: each may cost the round's charge once more."""


def answer(home: Path, request: Payload, sent: Path) -> None:
    """Takes part as a trainer does, and sends."""
    update = take_part(home, request, SHELF, now=NOW)
    tell_outside(sent, digest_of(update.tensors))


def answer_until(step: int, home: Path, request: Payload, sent: Path) -> None:
    """Takes part until the optimizer has taken ``step`` steps."""
    taken = 0

    def die(*_: object) -> None:
        nonlocal taken
        taken += 1
        if taken == step:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_post_hook(die)
    answer(home, request, sent)


def exit_code(target: object, *arguments: object) -> int | None:
    process = FORK.Process(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
    process.start()
    process.join()
    return process.exitcode


def undisturbed(federation: Federation) -> str:
    """The digest of the update that the first data owner sends if nothing happens to it."""
    sent = federation.data_owners_directory / "undisturbed"
    answer(federation.data_owner_directories[0], instructions(federation, local_steps=STEPS), sent)
    federation.begin_again()
    return sent.read_text().strip()


def private_federation_at_work(root: Path) -> Federation:
    """A federation whose second data owner has taken part, so that whatever is loaded once is."""
    federation = private_federation(root, "dp-sgd", own=OWN_PRIVACY, clients=2)
    answer(federation.data_owner_directories[1], instructions(federation, client="clinic-1"), root / "other")
    return federation


def test_f02_a_trainer_killed_at_thirty_random_steps_sends_what_an_undisturbed_one_sends(tmp_path: Path) -> None:
    federation, sent = build_federation(tmp_path), tmp_path / "sent"
    home, expected = federation.data_owner_directories[0], undisturbed(federation)
    draw = random.Random(2)
    for attempt in range(1, KILLS + 1):
        request = instructions(federation, local_steps=STEPS, attempt=attempt, nonce=f"{attempt:064x}")
        step = draw.randint(1, STEPS)
        assert exit_code(answer_until, step, home, request, sent) == -signal.SIGKILL
        assert not sent.exists()
        assert list((home / "releases").glob("*/*")) == [], "nothing of a training that was cut is kept"
    for attempt in (KILLS + 1, KILLS + 2):
        request = instructions(federation, local_steps=STEPS, attempt=attempt, nonce=f"{attempt:064x}")
        assert exit_code(answer, home, request, sent) == 0
    assert sent.read_text().split() == [expected, expected]


def test_f02_a_private_trainer_killed_at_random_steps_commits_one_release(tmp_path: Path) -> None:
    federation, sent = private_federation_at_work(tmp_path), tmp_path / "sent"
    home, request = federation.data_owner_directories[0], instructions(federation, local_steps=STEPS)
    draw, kills = random.Random(3), 5
    for _ in range(kills):
        assert exit_code(answer_until, draw.randint(1, STEPS), home, request, sent) == -signal.SIGKILL
    for _ in range(2):
        assert exit_code(answer, home, request, sent) == 0
    check_the_ledger(home, sent, charges=kills + 1)


def check_the_ledger(home: Path, sent: Path, *, charges: int) -> None:
    """Checks that one release is committed, that it alone has left, and that every noise drawn was charged."""
    entries = read_chain(home / "ledger").entries
    (committed,) = [entry for entry in entries if isinstance(entry, Committed)]
    assert set(sent.read_text().split()) == {committed.release_sha256}
    assert len([entry for entry in entries if isinstance(entry, Reserved)]) == charges


def test_f03_a_death_at_any_write_of_a_release_sends_the_same_bytes_in_the_end(tmp_path: Path) -> None:
    federation, sent = build_federation(tmp_path), tmp_path / "sent"
    home, expected = federation.data_owner_directories[0], undisturbed(federation)
    request = instructions(federation, local_steps=STEPS)
    kills = list(every_kill(lambda: answer(home, request, sent)))
    assert len(kills) > 7, "two folders, two files, a rename, and the syncs"
    again = instructions(federation, local_steps=STEPS, attempt=2, nonce="b" * 64)
    assert exit_code(answer, home, again, sent) == 0
    assert sent.read_text().split() == [expected, expected]
    kept = list((home / "releases").glob("*/[!.]*"))
    assert [place.name for place in kept] == ["1"]


def test_f03_a_death_at_any_write_of_a_private_release_leaves_one_in_the_ledger(tmp_path: Path) -> None:
    federation, sent = private_federation_at_work(tmp_path), tmp_path / "sent"
    home, request = federation.data_owner_directories[0], instructions(federation, local_steps=1)
    kills = list(every_kill(lambda: answer(home, request, sent)))
    assert len(kills) > 7
    again = instructions(federation, local_steps=1, attempt=2, nonce="b" * 64)
    assert exit_code(answer, home, again, sent) == 0
    charges = len([entry for entry in read_chain(home / "ledger").entries if isinstance(entry, Reserved)])
    assert 1 < charges <= len(kills) + 1
    check_the_ledger(home, sent, charges=charges)
