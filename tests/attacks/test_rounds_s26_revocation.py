"""Acceptance case S26, the rounds' part: an organisation is revoked in the middle of a round."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from flwr.app import Message

from fl_server.audit_log import AuditLog, create_audit_log
from fl_server.owner import read_rounds
from fl_server.registry import Approved, Registry, Revoked, create_registry
from fl_server.rounds import conduct_rounds
from scaleot_core.bundle import generate_identity
from scaleot_core.enrolment.transport_keys import generate_transport_key, node_public_line
from scaleot_core.errors import Reason
from scaleot_core.progress import SilentReporter
from tests.support.grids import FIRST_NODE, key_of, owner_key, set_stage

CLIENT, NODE_OF_CLIENT = "clinic-1", FIRST_NODE + 1
NOW = datetime.now(UTC).replace(microsecond=0)


def approve(registry: Registry, name: str) -> None:
    registry.append(
        Approved(
            certificate_not_after=NOW + timedelta(days=90),
            certificate_sha256="c" * 64,
            max_examples=100,
            node_public_key=node_public_line(generate_transport_key()),
            organisation=name,
            recipient=generate_identity().recipient,
            request_sha256="a" * 64,
            time=NOW,
            tls_public_key=generate_transport_key().public_key(),
            verifying_key=key_of(name).public,
        )
    )


@pytest.mark.parametrize("node", [NODE_OF_CLIENT, FIRST_NODE + 2], ids=["before its update is there", "afterwards"])
def test_s26_the_update_of_an_organisation_revoked_in_mid_round_does_not_count(tmp_path: Path, node: int) -> None:
    create_registry(tmp_path / "organisations.jsonl", owner_key().public, now=NOW)
    create_audit_log(tmp_path / "audit.jsonl", owner_key().public, now=NOW)
    registry = Registry(tmp_path / "organisations.jsonl")
    for number in range(3):
        approve(registry, f"clinic-{number}")
    seen: list[int] = []

    def revoke_in_round_2(reply: Message) -> Message:
        seen.append(node)
        if len(seen) == 2:
            Registry(tmp_path / "organisations.jsonl").append(
                Revoked(from_round=2, organisation=CLIENT, reason="left the project", time=NOW)
            )
        return reply

    directory = tmp_path / "run"
    directory.mkdir()
    places = {"registry": Path("../organisations.jsonl"), "audit_log": Path("../audit.jsonl")}
    stage = set_stage(directory, rounds=3, faults={node - FIRST_NODE: revoke_in_round_2}, **places)
    (directory / "members.json").unlink()
    conduct_rounds(stage.exchange, directory, SilentReporter())
    first, second, third = read_rounds(directory)
    assert CLIENT in first.clients
    assert second.clients == third.clients == ("clinic-0", "clinic-2")
    assert [(who.client, who.reason) for who in second.rejected] == [(CLIENT, Reason.REVOKED)]
    assert [who.reason for who in third.rejected] == [Reason.REVOKED], "its node is not asked to train any more"
    refused = [
        line.entry.body for line in AuditLog(tmp_path / "audit.jsonl").events() if line.entry.type == "round.closed"
    ]
    assert refused[1]["accepted"] == ["clinic-0", "clinic-2"]


def test_s17_the_registry_caps_the_weight(tmp_path: Path) -> None:
    create_registry(tmp_path / "organisations.jsonl", owner_key().public, now=NOW)
    for number in range(11):
        approve(Registry(tmp_path / "organisations.jsonl"), f"clinic-{number}")
    directory = tmp_path / "run"
    directory.mkdir()
    stage = set_stage(directory, clients=11, registry=Path("../organisations.jsonl"))
    conduct_rounds(stage.exchange, directory, SilentReporter())
    (record,) = read_rounds(directory)
    assert [(who.client, who.reason) for who in record.rejected] == [("clinic-10", Reason.WEIGHT)], "it claims 110"
