"""What the server keeps of privacy ledgers: the last head of each, told back to its owner, and never taken twice."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fl_server.audit_log import AuditLog, create_audit_log
from fl_server.owner import RoundRecord, read_rounds
from fl_server.reception import stated_update
from fl_server.rounds import conduct_rounds
from fl_server.wire import from_records
from scaleot_core.errors import Reason
from scaleot_core.federation.messages import Instructions, decode_statement
from scaleot_core.federation.signing import claimed
from scaleot_core.privacy.client_level import ClientLevelNoise
from scaleot_core.progress import SilentReporter
from tests.support.grids import Fault, SpoiltGrid, owner_key, respoken, set_stage, stepping_client_app, stepping_configs
from tests.support.ledgers import NOW
from tests.support.private_updates import privacy_request

ROUNDS = 3
HONEST = {1: "1" * 64, 2: "2" * 64, 3: "3" * 64, 4: "4" * 64}
"""A head of its own for each round."""


class NotingGrid(SpoiltGrid):
    """Notes the ledger's head in every request to train, by round and organisation."""

    def __init__(self, faults: Mapping[int, Fault]) -> None:
        super().__init__(stepping_client_app(), stepping_configs(len(faults)), faults)
        self.told: dict[tuple[int, str], str | None] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        for message in messages:
            if message.metadata.message_type == "train":
                asked = decode_statement(claimed(from_records(message.content).statement), Instructions)
                self.told[asked.round, asked.client] = asked.ledger_head
        return super().push_messages(messages)


def with_heads(heads: Mapping[int, str], *, useless_in: int | None = None) -> Fault:
    """A client that names the noise that was asked for, and in each round this head of its ledger."""

    def speak(reply: Message) -> Message:
        number = stated_update(from_records(reply.content).statement).round
        release = {
            "noise": "gaussian",
            "parameters": {"noise_multiplier": 2.0},
            "sample_rate": 1.0,
            "count": 1,
            "ledger_head": heads[number],
        }
        weight: dict[str, Any] = {"num_examples": 0} if number == useless_in else {}
        return respoken(reply, train_loss=None, privacy=release, **weight)

    return speak


def conducted(directory: Path, *clients: Fault, rounds: int = ROUNDS) -> tuple[NotingGrid, tuple[RoundRecord, ...]]:
    """Conducts the rounds of a private run, with an audit log, and returns what was told and recorded."""
    create_audit_log(directory / "audit.jsonl", owner_key().public, now=NOW)
    run = directory / "run"
    run.mkdir()
    privacy = privacy_request("update-gaussian", rounds=rounds)
    stage = set_stage(
        run, clients=len(clients), rounds=rounds, privacy=privacy, audit_log=Path("../audit.jsonl"), quorum=1
    )
    grid = NotingGrid(dict(enumerate(clients)))
    stage.grid = grid
    conduct_rounds(stage.exchange, run, SilentReporter())
    return grid, read_rounds(run)


def test_s23_each_organisation_is_told_the_last_head_that_it_signed_whatever_became_of_its_update(
    tmp_path: Path,
) -> None:
    """A refused update has left all the same: a ledger put back to before it would draw its noise twice."""
    heads = {number: f"{number}".ljust(64, "a") for number in HONEST}
    grid, _ = conducted(tmp_path, with_heads(HONEST), with_heads(heads, useless_in=2))
    assert [grid.told[number, "clinic-0"] for number in (1, 2, 3)] == [None, HONEST[1], HONEST[2]]
    assert [grid.told[number, "clinic-1"] for number in (1, 2, 3)] == [None, heads[1], heads[2]], "2 was refused"


def test_s23_a_ledger_head_of_an_earlier_round_is_refused_and_written_down(tmp_path: Path) -> None:
    put_back = {**HONEST, 3: HONEST[1]}
    not_charged = {**HONEST, 2: HONEST[1]}
    grid, records = conducted(tmp_path, with_heads(HONEST), with_heads(put_back), with_heads(not_charged))
    assert [record.clients for record in records] == [
        ("clinic-0", "clinic-1", "clinic-2"),
        ("clinic-0", "clinic-1"),
        ("clinic-0", "clinic-2"),
    ]
    refused = [(record.round, who.client, who.reason) for record in records for who in record.rejected]
    assert refused == [(2, "clinic-2", Reason.LEDGER), (3, "clinic-1", Reason.LEDGER)]
    events = [line.entry for line in AuditLog(tmp_path / "audit.jsonl").events()]
    written = [entry.body for entry in events if entry.type == "update.refused"]
    assert [(body["round"], body["client"], body["code"]) for body in written] == [
        (2, "clinic-2", "E_LEDGER"),
        (3, "clinic-1", "E_LEDGER"),
    ]
    assert grid.told[3, "clinic-2"] == HONEST[1]


def test_s23_a_head_that_was_refused_for_its_ledger_is_not_told_back(tmp_path: Path) -> None:
    put_back = {**HONEST, 3: HONEST[1]}
    grid, records = conducted(tmp_path, with_heads(HONEST), with_heads(put_back), rounds=4)
    assert "clinic-1" not in records[2].clients
    assert grid.told[4, "clinic-1"] == HONEST[2], "the copy that was put back has no such line"


@pytest.mark.parametrize("hides_clients", [False, True])
def test_the_log_whose_head_members_get_holds_no_digest_of_an_update_that_the_servers_noise_hides(
    tmp_path: Path, hides_clients: bool
) -> None:
    create_audit_log(tmp_path / "audit.jsonl", owner_key().public, now=NOW)
    (tmp_path / "run").mkdir()
    noise = ClientLevelNoise(max_update_norm=1.0, noise_multiplier=1.0, cohort_size=2) if hides_clients else None
    stage = set_stage(
        tmp_path / "run", clients=2, rounds=1, client_level=noise, audit_log=Path("../audit.jsonl"), quorum=1
    )
    conduct_rounds(stage.exchange, tmp_path / "run", SilentReporter())
    events = [line.entry for line in AuditLog(tmp_path / "audit.jsonl").events()]
    accepted = [entry.body for entry in events if entry.type == "update.accepted"]
    assert [("sha256" in body) for body in accepted] == [not hides_clients] * 2
