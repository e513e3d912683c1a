"""Acceptance case S12: node A answers in B's name. B is not held to it, and its own update still counts."""

from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Message

from fl_server.owner import ADAPTER_FILE, read_rounds
from fl_server.round_store import open_round_store
from fl_server.rounds import conduct_rounds
from scaleot_core.bundle import generate_signing_key
from scaleot_core.errors import Reason
from scaleot_core.progress import SilentReporter
from tests.support.grids import FIRST_NODE, key_of, respoken, set_stage
from tests.support.updates import random_state

B, NODE_OF_A = "clinic-1", FIRST_NODE


def _from_the_node_of_a(reply: Message) -> Message:
    reply.metadata.__dict__["_src_node_id"] = NODE_OF_A
    return reply


FORGERIES: dict[str, tuple[Callable[[Message], Message], Reason]] = {
    "A's node, B's message id": (_from_the_node_of_a, Reason.BINDING),
    "A's node pretends to be B's, A's key": (
        lambda reply: respoken(reply, state=random_state(9), signer=key_of("clinic-0")),
        Reason.SIGNATURE,
    ),
    "a stranger's key": (lambda reply: respoken(reply, signer=generate_signing_key()), Reason.SIGNATURE),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_s12_a_forged_reply_costs_b_nothing_but_an_attempt(tmp_path: Path, name: str) -> None:
    forge, reason = FORGERIES[name]
    seen: list[Message] = []

    def once(reply: Message) -> Message:
        seen.append(reply)
        return forge(reply) if len(seen) == 1 else reply

    honest, attacked = tmp_path / "honest", tmp_path / "attacked"
    for directory, faults in ((honest, {}), (attacked, {1: once})):
        directory.mkdir()
        conduct_rounds(set_stage(directory, faults=faults).exchange, directory, SilentReporter())
    (record,) = read_rounds(attacked)
    assert B in record.clients and record.rejected == ()
    assert (attacked / ADAPTER_FILE).read_bytes() == (honest / ADAPTER_FILE).read_bytes()
    with open_round_store(attacked, "run-1") as store:
        current = store.newest()
        assert current is not None
        answers = [answer for answer in current.answers if answer.client == B]
        assert [(answer.attempt, answer.code) for answer in answers] == [(1, reason), (2, None)]
        assert store.hard_refusals() == {}


def test_s12_b_is_not_suspended_however_often_somebody_forges_its_replies(tmp_path: Path) -> None:
    stage = set_stage(tmp_path, faults={1: FORGERIES["a stranger's key"][0]}, rounds=4)
    conduct_rounds(stage.exchange, tmp_path, SilentReporter())
    records = read_rounds(tmp_path)
    assert all([(who.client, who.reason) for who in record.rejected] == [(B, Reason.SIGNATURE)] for record in records)
