import json
import math
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.app.message import make_message

from fl_server.owner import ADAPTER_FILE, ROUNDS_FILE, read_adapter, read_rounds
from fl_server.rounds import conduct_rounds
from fl_server.wire import from_records, to_records
from scaleot_core.errors import InputError, Reason, RoundFailedError
from scaleot_core.federation.messages import Payload, Refusal, encode_statement
from scaleot_core.progress import SilentReporter
from scaleot_core.shapes import TensorDict
from tests.support.grids import FIRST_NODE, Fault, Stage, respoken, set_stage
from tests.support.updates import SHAPES, blob_with_header, header_of, random_state


def conduct(stage: Stage) -> TensorDict:
    conduct_rounds(stage.exchange, stage.directory, SilentReporter())
    return read_adapter(stage.directory / ADAPTER_FILE)


class RecordingReporter:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.advances: list[tuple[int, float | None]] = []

    @contextmanager
    def stage(self, name: str, *, steps: int) -> Iterator["RecordingReporter"]:
        self.stages.append((name, steps))
        yield self

    def advance(self, steps: int = 1, *, loss: float | None = None) -> None:
        self.advances.append((steps, loss))

    def note(self, text: str) -> None:
        raise AssertionError(text)


def constant(value: float) -> TensorDict:
    return {name: torch.full(shape, value) for name, shape in SHAPES.items()}


def test_a_round_averages_the_clients_by_their_examples(tmp_path: Path) -> None:
    stage = set_stage(tmp_path)
    adapter = conduct(stage)
    for name, base in stage.initial_adapter.items():  # (1 * 10 + 2 * 20 + 3 * 30) / 60
        assert torch.allclose(adapter[name], base + 140 / 60, atol=1e-6)


def test_every_round_starts_from_the_one_before(tmp_path: Path) -> None:
    stage = set_stage(tmp_path, rounds=3)
    adapter = conduct(stage)
    for name, base in stage.initial_adapter.items():
        assert torch.allclose(adapter[name], base + 3 * 140 / 60, atol=1e-5)
    assert [record.round for record in read_rounds(tmp_path)] == [1, 2, 3]


def test_only_the_cohort_is_asked_and_it_changes(tmp_path: Path) -> None:
    conduct(set_stage(tmp_path, clients=5, clients_per_round=2, rounds=6))
    cohorts = [record.clients for record in read_rounds(tmp_path)]
    assert all(len(cohort) == 2 for cohort in cohorts)
    assert len(set(cohorts)) > 1


def test_a_run_repeats_to_the_last_bit(tmp_path: Path) -> None:
    results = []
    for name in ("first", "again"):
        (tmp_path / name).mkdir()
        conduct(set_stage(tmp_path / name, clients=5, clients_per_round=3, rounds=4))
        results.append((tmp_path / name / ADAPTER_FILE).read_bytes())
    assert results[0] == results[1]


def _errs(reply: Message) -> Message:
    return make_message(metadata=reply.metadata, error=Error(code=2, reason="ValueError: patient Meier"))


def _refuses(reply: Message) -> Message:
    nonce = json.loads(from_records(reply.content).statement)["nonce"]
    reply.content = to_records(Payload(encode_statement(Refusal(nonce=nonce, code="policy.local_steps"))))
    return reply


def _refuses_for_another(reply: Message) -> Message:
    reply.content = to_records(Payload(encode_statement(Refusal(nonce="d" * 64, code="data"))))
    return reply


def _other_records(reply: Message) -> Message:
    reply.content = RecordDict({"arrays": ArrayRecord(), "statement": ConfigRecord({"bytes": b"{}"})})
    return reply


def _statement_as_text(reply: Message) -> Message:
    text = from_records(reply.content).statement.decode()
    reply.content = RecordDict({"statement": ConfigRecord({"bytes": text})})
    return reply


def _with_state(change: Callable[[TensorDict], TensorDict]) -> Fault:
    return lambda reply: respoken(reply, state=change(random_state(5)))


def _nan(state: TensorDict) -> TensorDict:
    state["1.q_proj.lora_A"][0, 0] = math.nan
    return state


def _duplicate_keys(reply: Message) -> Message:
    entry = '{"dtype":"F32","shape":[2,8],"data_offsets":[0,64]}'
    other = '{"dtype":"F32","shape":[8,2],"data_offsets":[64,128]}'
    header = f'{{"1.q_proj.lora_A":{entry},"1.q_proj.lora_A":{entry},"1.q_proj.lora_B":{other}}}'
    return respoken(reply, blob=blob_with_header(header, b"\0" * 128))


def _header_bomb(reply: Message) -> Message:
    bomb = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(50_000)}
    return respoken(reply, blob=blob_with_header({**header_of(), **bomb}, b"\0" * 128))


def _wrong_digest(reply: Message) -> Message:
    return respoken(reply, update_sha256="e" * 64)


def _from_another_node(reply: Message) -> Message:
    reply.metadata.__dict__["_src_node_id"] = FIRST_NODE + 2
    return reply


FAULTS: dict[str, tuple[Fault, Reason]] = {
    "errs": (_errs, Reason.ERROR),
    "refuses": (_refuses, Reason.ERROR),
    "refuses another's request": (_refuses_for_another, Reason.BINDING),
    "other records": (_other_records, Reason.FORMAT),
    "statement as text": (_statement_as_text, Reason.FORMAT),
    "never answers": (lambda reply: None, Reason.TIMEOUT),
    "NaN": (_with_state(_nan), Reason.NONFINITE),
    "infinity": (_with_state(lambda state: constant(math.inf)), Reason.NONFINITE),
    "1e30": (_with_state(lambda state: constant(1e30)), Reason.NORM),
    "wrong shape": (_with_state(lambda state: {**state, "1.q_proj.lora_A": torch.zeros(8, 2)}), Reason.SCHEMA),
    "broadcast shape": (_with_state(lambda state: {**state, "1.q_proj.lora_A": torch.zeros(1, 1)}), Reason.SCHEMA),
    "wrong dtype": (_with_state(lambda state: {k: v.half() for k, v in state.items()}), Reason.SCHEMA),
    "missing tensor": (_with_state(lambda state: {"1.q_proj.lora_A": state["1.q_proj.lora_A"]}), Reason.SCHEMA),
    "extra tensor": (_with_state(lambda state: {**state, "2.x": torch.zeros(1)}), Reason.SCHEMA),
    "no tensors": (lambda reply: respoken(reply, blob=b""), Reason.SIZE),
    "duplicate keys": (_duplicate_keys, Reason.SCHEMA),
    "header bomb": (_header_bomb, Reason.SIZE),
    "wrong digest": (_wrong_digest, Reason.DIGEST),
    "weight 0": (lambda reply: respoken(reply, num_examples=0), Reason.WEIGHT),
    "weight negative": (lambda reply: respoken(reply, num_examples=-800), Reason.WEIGHT),
    "weight 1e12": (lambda reply: respoken(reply, num_examples=10**12), Reason.WEIGHT),
    "weight a boolean": (lambda reply: respoken(reply, num_examples=True), Reason.WEIGHT),
    "weight a string": (lambda reply: respoken(reply, num_examples="5"), Reason.WEIGHT),
    "weight a fraction": (lambda reply: respoken(reply, num_examples=1.5), Reason.WEIGHT),
    "another round": (lambda reply: respoken(reply, round=2), Reason.STALE),
    "another run": (lambda reply: respoken(reply, run="run-2"), Reason.BINDING),
    "another nonce": (lambda reply: respoken(reply, nonce="d" * 64), Reason.BINDING),
    "another's name": (lambda reply: respoken(reply, client="clinic-2"), Reason.BINDING),
    "another base": (lambda reply: respoken(reply, base_sha256="d" * 64), Reason.BINDING),
    "another bundle": (lambda reply: respoken(reply, bundle_digest="d" * 64), Reason.BINDING),
    "from another node": (_from_another_node, Reason.BINDING),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_client_is_refused_with_its_reason_and_the_round_is_as_if_it_were_not_there(
    tmp_path: Path, name: str
) -> None:
    fault, reason = FAULTS[name]
    stage = set_stage(tmp_path, faults={1: fault})
    adapter = conduct(stage)
    (record,) = read_rounds(tmp_path)
    assert record.clients == ("clinic-0", "clinic-2")
    assert [(who.client, who.reason) for who in record.rejected] == [("clinic-1", reason)]
    assert "Meier" not in (tmp_path / ROUNDS_FILE).read_text()
    for tensor_name, base in stage.initial_adapter.items():  # (1 * 10 + 3 * 30) / 40
        assert torch.allclose(adapter[tensor_name], base + 100 / 40, atol=1e-6)


def test_the_rounds_after_a_bad_one_take_the_client_back(tmp_path: Path) -> None:
    seen = []

    def once(reply: Message) -> Message:
        seen.append(reply)
        return _errs(reply) if len(seen) == 1 else reply

    conduct(set_stage(tmp_path, faults={1: once}, rounds=2))
    assert [len(record.clients) for record in read_rounds(tmp_path)] == [2, 3]


def test_a_round_without_any_update_fails_after_what_was_reached_is_saved(tmp_path: Path) -> None:
    replies = []

    def fails_in_round_2(reply: Message) -> Message:
        replies.append(reply)
        return reply if len(replies) <= 2 else _errs(reply)

    stage = set_stage(tmp_path, clients=2, faults={0: fails_in_round_2, 1: fails_in_round_2}, rounds=3)
    with pytest.raises(RoundFailedError, match=r"round 2[\s\S]*clinic-0: E_CLIENT"):
        conduct(stage)
    first, second = read_rounds(tmp_path)
    assert first.clients == ("clinic-0", "clinic-1")
    assert (second.clients, second.train_loss) == ((), None)
    assert [who.client for who in second.rejected] == ["clinic-0", "clinic-1"]
    adapter = read_adapter(tmp_path / ADAPTER_FILE)
    for name, base in stage.initial_adapter.items():  # (1 * 10 + 2 * 20) / 30, of round 1
        assert torch.allclose(adapter[name], base + 50 / 30, atol=1e-6)


def test_a_silent_client_costs_one_deadline_and_is_left_alone_until_it_answers(tmp_path: Path) -> None:
    stage = set_stage(tmp_path, clients=3, faults={0: lambda reply: None}, rounds=3, round_deadline_seconds=30.0)
    conduct(stage)
    first, second, third = read_rounds(tmp_path)
    assert [(who.client, who.reason) for who in first.rejected] == [("clinic-0", Reason.TIMEOUT)]
    assert first.clients == ("clinic-1", "clinic-2"), "their replies were there and are taken after the deadline"
    assert first.seconds == pytest.approx(30.0, abs=0.5)
    assert (second.clients, second.rejected) == (("clinic-1", "clinic-2"), ())
    assert third.seconds < 1.0


def test_ffa_without_a_frozen_down_projection_is_refused_before_any_round(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="LoRA's A"):
        conduct(set_stage(tmp_path, aggregation="ffa"))
    assert not (tmp_path / ROUNDS_FILE).exists()


def test_the_progress_shows_the_mean_loss_and_never_one_clients(tmp_path: Path) -> None:
    reporter = RecordingReporter()
    stage = set_stage(tmp_path, rounds=2)
    conduct_rounds(stage.exchange, stage.directory, reporter)
    assert reporter.stages == [("rounds", 6)]
    assert reporter.advances == [(1, None), (1, None), (1, None), (0, 1.0)] * 2


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory in use from Linux's /proc")
def test_the_servers_memory_does_not_grow_with_the_clients(tmp_path: Path) -> None:
    adapter_bytes, resident = 2 * 1024 * 1024, []

    def weigh(reply: Message) -> Message:
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
        return reply

    faults = dict.fromkeys(range(32), weigh)
    conduct(set_stage(tmp_path, clients=32, faults=faults, shapes={"w": (512, 1024)}, max_update_norm=1e6))
    assert len(read_rounds(tmp_path)[0].clients) == len(resident) == 32
    early, late = sum(resident[4:12]) / 8, sum(resident[24:]) / 8
    assert late - early < 5 * adapter_bytes, "twenty more updates would be 40 MiB, their bytes as much again"
