"""Acceptance case S23 with the mechanisms themselves: a hundred deaths of a trainer around releases of all four.

The trainer is the real one and is killed by SIGKILL wherever it is: before the charge, between two noises of a step,
between the last noise and the ledger's line, or after its bytes have left. What it tells the outside world it writes to
two files that no crash touches: a round's number with an attempt's first secret number, and every update that leaves.
"""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fl_clients.session import EmulatorShelf, take_part
from scaleot_core.federation.messages import Payload, UpdateStatement, decode_statement, digest_of
from scaleot_core.federation.signing import claimed
from scaleot_core.privacy.accountant import epsilon_of
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.ledger_file import read_chain
from scaleot_core.privacy.ledger_lines import Committed
from scaleot_core.privacy.ledger_summary import summarise
from scaleot_core.privacy.secret_random import SecretSource
from tests.support.kills import FORK
from tests.support.ledgers import RUN
from tests.support.outside import tell_outside, told
from tests.support.private_updates import instructions, privacy_request, private_federation

NOW = datetime.now(UTC)
SHELF = EmulatorShelf()
"""Filled before the first death: the children inherit the opened emulator and the calibrated noise, and no death is
spent on either."""
KILLS = 25
"""For each of the four mechanisms, with the slow tests; without them four, and `test_updates_f02_f03_kills.py`."""
PLANNED_ROUNDS = 200
"""Room for every death, each of which may cost its round's charge once more."""
STEPS = 2
DELTA = 1e-3


def tell_of_first_draws(rounds: Sequence[int], path: Path) -> None:
    """Makes this process tell of its first secret number in each round; ``rounds[-1]`` is the one under way."""
    told_of: set[int] = set()

    def telling(draw: Callable[[SecretSource, int], Any]) -> Callable[[SecretSource, int], Any]:
        def drawing(source: SecretSource, number: int) -> Any:
            if rounds[-1] not in told_of:
                told_of.add(rounds[-1])
                tell_outside(path, rounds[-1])
            return draw(source, number)

        return drawing

    for name in ("words", "integer_below"):  # the two through which everything secret comes
        setattr(SecretSource, name, telling(getattr(SecretSource, name)))


def answer_all(home: Path, requests: Sequence[Payload], outside: Path) -> None:
    """Answers the requests of all rounds of which the server has no update yet."""
    seen = {int(round_number) for round_number, _ in told(outside / "sent")}
    under_way = [0]
    tell_of_first_draws(under_way, outside / "drawn")
    for round_number, request in enumerate(requests, start=1):
        if round_number not in seen:
            under_way.append(round_number)
            update = take_part(home, request, SHELF, now=NOW)
            tell_outside(outside / "sent", round_number, digest_of(update.tensors))


def check_the_record(home: Path, outside: Path) -> None:
    """Checks the ledger, as it lies on the disk, against what the outside world was told."""
    chain, drawn, sent = read_chain(home / "ledger"), told(outside / "drawn"), told(outside / "sent")
    updates = dict(sent)
    assert len({tuple(line) for line in sent}) == len(updates), "two noises"
    for round_number, digest in updates.items():
        committed = chain.commit_of((RUN, int(round_number)))
        assert committed is not None
        assert committed.release_sha256 == digest
    charged = Counter(str(reserved.round) for reserved in chain.reserved)
    assert Counter(round_number for (round_number,) in drawn) <= charged, "noise before its charge was on the disk"


@pytest.mark.parametrize(
    ("mechanism", "kills"),
    [
        ("dpzero", 4),
        *(
            pytest.param(mechanism, KILLS, marks=pytest.mark.slow)
            for mechanism in ("dp-sgd", "dpzero", "lmo-dp", "update-gaussian")
        ),
    ],
)
def test_s23_a_trainer_killed_around_releases_never_has_two_noises_nor_one_uncharged(
    tmp_path: Path, mechanism: str, kills: int
) -> None:
    own = f'[privacy]\nepsilon = 8.0\ndelta = {DELTA}\nmechanisms = ["{mechanism}"]\n'
    federation = private_federation(tmp_path, mechanism, own=own, clients=2, examples=(8, 8))
    home, other = federation.data_owner_directories
    asked = {"local_steps": STEPS, "privacy": privacy_request(mechanism, rounds=PLANNED_ROUNDS)}
    answer = take_part(other, instructions(federation, client="clinic-1", **asked), SHELF, now=NOW)
    said = decode_statement(claimed(answer.statement), UpdateStatement).privacy
    assert said is not None, "and both are asked for the same noise, who declare as many records"
    of_a_round = PrivacyEvent(said.noise, said.parameters, said.sample_rate, said.count)
    requests = [
        instructions(federation, round=number, nonce=f"{number:064x}", **asked) for number in range(1, PLANNED_ROUNDS)
    ]
    draw = random.Random(mechanism)
    for _ in range(kills):
        wanted = len(told(tmp_path / "drawn")) + draw.randint(1, 2)
        process = FORK.Process(target=answer_all, args=(home, requests, tmp_path), daemon=True)
        process.start()
        while process.is_alive() and len(told(tmp_path / "drawn")) < wanted:
            time.sleep(0.001)
        time.sleep(draw.choice((0.0, draw.uniform(0.0, 0.1))))  # at once: a noise before its charge has none yet
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        check_the_record(home, tmp_path)
    chain = read_chain(home / "ledger")
    if kills == KILLS:
        committed = sum(isinstance(entry, Committed) for entry in chain.entries)
        assert committed > 0, "the trainer got on between the kills"
        assert len(chain.reserved) > committed, "some kills fell between a charge and its release"
    drawn = len(told(tmp_path / "drawn"))
    assert 0 < epsilon_of([of_a_round.times(drawn)], DELTA) <= summarise(chain, epsilon_of).spent_epsilon
