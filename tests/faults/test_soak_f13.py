"""Acceptance case F13: many rounds with faults at random; what is counted is right, and nothing grows.

The fast case has 8 rounds. ``pytest -m slow tests/faults/test_soak_f13.py`` soaks for 200. Deaths of the server in
as many rounds are F04's.
"""

import gc
import random
from pathlib import Path

import psutil
import pytest
import torch
from flwr.app import Error, Message, RecordDict
from flwr.app.message import make_message

from fl_server.owner import RoundRecord, read_adapter, read_rounds
from fl_server.rounds import conduct_rounds
from scaleot_core.bundle import generate_signing_key
from scaleot_core.shapes import TensorDict
from tests.support.grids import Fault, respoken, set_stage

CLIENTS = 5
FAULT_SHARE = 0.4
STRANGER = generate_signing_key()
GROWTH_BYTES = 16 << 20


def lose(reply: Message) -> Message:
    """What Flower answers for a message that has run out of time, or whose node is gone."""
    return make_message(metadata=reply.metadata, error=Error(code=5, reason="gone"))


def garble(reply: Message) -> Message:
    reply.content = RecordDict()
    return reply


def forge(reply: Message) -> Message:
    return respoken(reply, signer=STRANGER)


def repeat_an_older_answer(reply: Message) -> Message:
    return respoken(reply, nonce="0" * 64)


def at_random(seed: int, done: list[str]) -> Fault:
    """Returns a fault that spoils some replies, and notes which."""
    draw = random.Random(seed)

    def fault(reply: Message) -> Message:
        if draw.random() >= FAULT_SHARE:
            return reply
        chosen = draw.choice([lose, garble, forge, repeat_an_older_answer])
        done.append(chosen.__name__)
        return chosen(reply)

    return fault


class Gauge:
    """A reporter that measures this process after every round."""

    def __init__(self) -> None:
        self.files: list[int] = []
        self.memory_bytes: list[int] = []

    def stage(self, name: str, *, steps: int) -> "Gauge":
        del name, steps
        return self

    def __enter__(self) -> "Gauge":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self, steps: int = 1, *, loss: float | None = None) -> None:
        del steps
        if loss is not None:  # once a round
            gc.collect()
            process = psutil.Process()
            self.files.append(process.num_fds())
            self.memory_bytes.append(process.memory_info().rss)

    def note(self, text: str) -> None:
        del text


def expected_adapter(initial: TensorDict, records: tuple[RoundRecord, ...]) -> TensorDict:
    """Client ``i`` steps by ``i + 1`` and weighs ``10 (i + 1)``: the mean of those that a round has counted."""
    total = 0.0
    for record in records:
        weights = [int(client.removeprefix("clinic-")) + 1 for client in record.clients]
        total += sum(weight * weight for weight in weights) / sum(weights)
    return {name: tensor + total for name, tensor in initial.items()}


@pytest.mark.parametrize("rounds", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_f13_rounds_with_faults_at_random_count_what_is_right_and_nothing_grows(tmp_path: Path, rounds: int) -> None:
    spoilt: list[str] = []
    faults = {client: at_random(client, spoilt) for client in range(CLIENTS)}
    stage = set_stage(tmp_path, clients=CLIENTS, faults=faults, rounds=rounds, max_update_norm=1e9)
    gauge = Gauge()
    conduct_rounds(stage.exchange, tmp_path, gauge)
    records = read_rounds(tmp_path)
    assert [record.round for record in records] == list(range(1, rounds + 1))
    assert {one.reason for record in records for one in record.rejected} <= {
        "E_CLIENT",
        "E_FORMAT",
        "E_SIGNATURE",
        "E_BINDING",
    }
    assert len(spoilt) > rounds and len(set(spoilt)) == 4
    for name, expected in expected_adapter(stage.initial_adapter, records).items():
        assert torch.allclose(read_adapter(tmp_path / "adapter.safetensors")[name], expected, rtol=1e-4)
    assert len(list((tmp_path / "blobs").iterdir())) <= 3
    assert len(gauge.files) == rounds
    assert len(set(gauge.files[2:])) == 1, "no file stays open"
    assert gauge.memory_bytes[-1] - gauge.memory_bytes[2] < GROWTH_BYTES
