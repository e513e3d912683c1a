"""Acceptance case S20: free riders and copies are flagged and never refused, and no honest client ever is."""

from collections.abc import Callable
from pathlib import Path

from flwr.app import Message

from fl_server.owner import INITIAL_ADAPTER_FILE, read_adapter, read_rounds, round_adapter_file
from fl_server.rounds import conduct_rounds
from fl_server.wire import from_records
from scaleot_core.federation.behaviour import Flag
from scaleot_core.federation.validation import AdapterSchema, decode_tensors
from scaleot_core.progress import SilentReporter
from scaleot_core.shapes import TensorDict
from tests.support.grids import Fault, respoken, set_stage
from tests.support.updates import random_state

SHAPES = {"1.q_proj.lora_A": (8, 64), "1.q_proj.lora_B": (64, 8)}
SCHEMA = AdapterSchema(SHAPES)


class Honest:
    """Steps of its own beside a common direction, as clients of one task take them: their cosine is about 0.8."""

    def __init__(self, directory: Path, number: int) -> None:
        self.directory, self.number, self.rounds = directory, number, 0

    def base(self) -> TensorDict:
        name = round_adapter_file(self.rounds) if self.rounds else INITIAL_ADAPTER_FILE
        return read_adapter(self.directory / name)

    def step(self) -> TensorDict:
        common, own = random_state(1_000 + self.rounds, SHAPES), random_state(self.rounds * 100 + self.number, SHAPES)
        return {name: 0.02 * common[name] + 0.01 * own[name] for name in SHAPES}

    def __call__(self, reply: Message) -> Message:
        base, step = self.base(), self.step()
        self.rounds += 1
        return respoken(reply, state={name: base[name] + step[name] for name in SHAPES})


def test_s20_no_honest_client_is_flagged_in_fifty_rounds(tmp_path: Path) -> None:
    faults: dict[int, Fault] = {number: Honest(tmp_path, number) for number in range(4)}
    stage = set_stage(tmp_path, clients=4, faults=faults, shapes=SHAPES, rounds=50)
    conduct_rounds(stage.exchange, tmp_path, SilentReporter())
    records = read_rounds(tmp_path)
    assert len(records) == 50 and all(record.flags == {} and len(record.clients) == 4 for record in records)


class FreeRider(Honest):
    """Sends what ``make`` makes of the round's base and of the federation's last step."""

    def __init__(self, directory: Path, number: int, make: Callable[["FreeRider", TensorDict], TensorDict]) -> None:
        super().__init__(directory, number)
        self.make = make

    def __call__(self, reply: Message) -> Message:
        state = self.make(self, self.base())
        self.rounds += 1
        return respoken(reply, state=state)

    def echo(self, base: TensorDict) -> TensorDict:
        if self.rounds == 0:
            return {name: base[name] + step for name, step in self.step().items()}
        before = Honest(self.directory, self.number)
        before.rounds = self.rounds - 1
        return {name: base[name] + 0.7 * (base[name] - before.base()[name]) for name in SHAPES}


def test_s20_a_zero_and_an_echo_and_a_copy_are_flagged_and_count(tmp_path: Path) -> None:
    seen: dict[int, TensorDict] = {}

    def victim(reply: Message) -> Message:
        answer = honest(reply)
        seen[honest.rounds] = decode_tensors(from_records(answer.content).tensors, SCHEMA)
        return answer

    def copy(rider: FreeRider, base: TensorDict) -> TensorDict:
        noise = random_state(77, SHAPES)
        return {name: seen[rider.rounds + 1][name] + 1e-5 * noise[name] for name in SHAPES}

    honest = Honest(tmp_path, 0)
    faults: dict[int, Fault] = {
        0: victim,
        1: Honest(tmp_path, 1),
        2: FreeRider(tmp_path, 2, lambda rider, base: base),
        3: FreeRider(tmp_path, 3, FreeRider.echo),
        4: FreeRider(tmp_path, 4, copy),
    }
    stage = set_stage(tmp_path, clients=5, faults=faults, shapes=SHAPES, rounds=2)
    conduct_rounds(stage.exchange, tmp_path, SilentReporter())
    first, second = read_rounds(tmp_path)
    assert len(second.clients) == 5 and second.rejected == ()
    assert first.flags == {
        "clinic-0": (Flag.COPY,),
        "clinic-2": (Flag.ZERO,),
        "clinic-4": (Flag.COPY,),
    }
    assert second.flags == {**first.flags, "clinic-3": (Flag.ECHO,)}
