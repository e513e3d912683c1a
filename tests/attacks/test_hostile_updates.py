"""Every hostile or broken reply of the threat model: refused with its reason, and as if its client were not there."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.app.message import make_message

from fl_server.owner import ADAPTER_FILE, ROUNDS_FILE, read_rounds
from fl_server.rounds import conduct_rounds
from fl_server.wire import from_records, to_records
from scaleot_core.errors import Reason
from scaleot_core.federation.messages import Payload, Refusal
from scaleot_core.federation.signing import claimed, sign
from scaleot_core.progress import SilentReporter
from scaleot_core.shapes import TensorDict
from tests.support.grids import FIRST_NODE, Fault, key_of, respoken, set_stage
from tests.support.updates import SHAPES, blob_with_header, header_of, random_state


def constant(value: float) -> TensorDict:
    return {name: torch.full(shape, value) for name, shape in SHAPES.items()}


def _errs(reply: Message) -> Message:
    return make_message(metadata=reply.metadata, error=Error(code=2, reason="ValueError: patient Meier"))


def _refuses(reply: Message) -> Message:
    nonce = json.loads(claimed(from_records(reply.content).statement))["nonce"]
    refusal = Refusal(nonce=nonce, code="policy.local_steps")
    reply.content = to_records(Payload(sign(refusal, key_of("clinic-1"))))
    return reply


def _refuses_for_another(reply: Message) -> Message:
    reply.content = to_records(Payload(sign(Refusal(nonce="d" * 64, code="data"), key_of("clinic-1"))))
    return reply


def _other_records(reply: Message) -> Message:
    reply.content = RecordDict({"arrays": ArrayRecord(), "statement": ConfigRecord({"bytes": b"{}"})})
    return reply


def _statement_as_text(reply: Message) -> Message:
    text = claimed(from_records(reply.content).statement).decode()
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
    bomb = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(2_000)}
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
    "S15 NaN": (_with_state(_nan), Reason.NONFINITE),
    "S15 infinity": (_with_state(lambda state: constant(math.inf)), Reason.NONFINITE),
    "S15 1e30": (_with_state(lambda state: constant(1e30)), Reason.NORM),
    "S16 wrong shape": (_with_state(lambda state: {**state, "1.q_proj.lora_A": torch.zeros(8, 2)}), Reason.SCHEMA),
    "S16 broadcast shape": (_with_state(lambda state: {**state, "1.q_proj.lora_A": torch.zeros(1, 1)}), Reason.SCHEMA),
    "S16 wrong dtype": (_with_state(lambda state: {k: v.half() for k, v in state.items()}), Reason.SCHEMA),
    "S16 missing tensor": (_with_state(lambda state: {"1.q_proj.lora_A": state["1.q_proj.lora_A"]}), Reason.SCHEMA),
    "S16 extra tensor": (_with_state(lambda state: {**state, "2.x": torch.zeros(1)}), Reason.SCHEMA),
    "S16 no tensors": (lambda reply: respoken(reply, blob=b""), Reason.SIZE),
    "S16 duplicate keys": (_duplicate_keys, Reason.SCHEMA),
    "S16 header bomb": (_header_bomb, Reason.SIZE),
    "wrong digest": (_wrong_digest, Reason.DIGEST),
    "S17 weight 0": (lambda reply: respoken(reply, num_examples=0), Reason.WEIGHT),
    "S17 weight negative": (lambda reply: respoken(reply, num_examples=-800), Reason.WEIGHT),
    "S17 weight 1e12": (lambda reply: respoken(reply, num_examples=10**12), Reason.WEIGHT),
    "S17 weight a boolean": (lambda reply: respoken(reply, num_examples=True), Reason.WEIGHT),
    "S17 weight a string": (lambda reply: respoken(reply, num_examples="5"), Reason.WEIGHT),
    "S17 weight a fraction": (lambda reply: respoken(reply, num_examples=1.5), Reason.WEIGHT),
    "S13 another round": (lambda reply: respoken(reply, round=2), Reason.STALE),
    "S13 another run": (lambda reply: respoken(reply, run="run-2"), Reason.BINDING),
    "S13 another nonce": (lambda reply: respoken(reply, nonce="d" * 64), Reason.BINDING),
    "S12 another's name": (lambda reply: respoken(reply, client="clinic-2"), Reason.BINDING),
    "S12 another's key": (lambda reply: respoken(reply, signer=key_of("clinic-2")), Reason.SIGNATURE),
    "S13 another base": (lambda reply: respoken(reply, base_sha256="d" * 64), Reason.BINDING),
    "S13 another bundle": (lambda reply: respoken(reply, bundle_digest="d" * 64), Reason.BINDING),
    "S12 from another node": (_from_another_node, Reason.BINDING),
}


@pytest.fixture(scope="module")
def without_the_attacker(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The adapter of the same round when client 1 says nothing at all."""
    directory = tmp_path_factory.mktemp("honest")
    return _adapter_of_a_round(directory, lambda reply: None)


def _adapter_of_a_round(directory: Path, fault: Fault) -> bytes:
    stage = set_stage(directory, faults={1: fault})
    conduct_rounds(stage.exchange, directory, SilentReporter())
    return (directory / ADAPTER_FILE).read_bytes()


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_reply_is_refused_with_its_reason_and_changes_no_bit_of_the_aggregate(
    tmp_path: Path, without_the_attacker: bytes, name: str
) -> None:
    fault, reason = FAULTS[name]
    assert _adapter_of_a_round(tmp_path, fault) == without_the_attacker
    (record,) = read_rounds(tmp_path)
    assert record.clients == ("clinic-0", "clinic-2")
    assert [(who.client, who.reason) for who in record.rejected] == [("clinic-1", reason)]
    assert "Meier" not in (tmp_path / ROUNDS_FILE).read_text()
