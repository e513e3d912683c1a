"""Acceptance case S26, the rounds' part: an organisation is revoked in the middle of a round."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from flwr.app import Message

import fl_server.rounds
from fl_server.membership import MEMBERS_FILE, MembersFile, read_members
from fl_server.owner import read_rounds
from fl_server.rounds import conduct_rounds
from scaleot_core.bundle import VerifyingKey
from scaleot_core.errors import Reason
from scaleot_core.progress import SilentReporter
from tests.support.grids import set_stage

CLIENT = "clinic-1"


@dataclass
class Revocable:
    """Members of which one can be revoked from a round on, as the registry does it."""

    members: MembersFile
    revoked_from: dict[str, int] = field(default_factory=dict)

    def verifying_key(self, name: str) -> VerifyingKey | None:
        return self.members.verifying_key(name)

    def is_active(self, name: str, round_number: int) -> bool:
        return round_number < self.revoked_from.get(name, 1_000)

    def max_examples(self, name: str) -> int:
        return self.members.max_examples(name)


def conduct(
    directory: Path, monkeypatch: pytest.MonkeyPatch, revoke_at: Callable[[Revocable], Callable[[Message], Message]]
) -> None:
    stage = set_stage(directory, rounds=3)
    membership = Revocable(read_members(directory / MEMBERS_FILE))
    monkeypatch.setattr(fl_server.rounds, "membership_of", lambda *_: membership)
    stage.grid._faults = {3: revoke_at(membership), 4: revoke_at(membership)}  # type: ignore[attr-defined]
    conduct_rounds(stage.exchange, directory, SilentReporter())


@pytest.mark.parametrize("node", [3, 4], ids=["before its update is there", "after its update was taken"])
def test_s26_the_update_of_an_organisation_revoked_in_mid_round_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: int
) -> None:
    def revoke_in_round_2(membership: Revocable) -> Callable[[Message], Message]:
        seen: list[int] = []

        def fault(reply: Message) -> Message:
            seen.append(reply.metadata.src_node_id)
            if reply.metadata.src_node_id == node and seen.count(node) == 2:
                membership.revoked_from[CLIENT] = 2
            return reply

        return fault

    conduct(tmp_path, monkeypatch, revoke_in_round_2)
    first, second, third = read_rounds(tmp_path)
    assert CLIENT in first.clients
    assert second.clients == ("clinic-0", "clinic-2")
    assert [(who.client, who.reason) for who in second.rejected] == [(CLIENT, Reason.REVOKED)]
    assert third.clients == ("clinic-0", "clinic-2"), "it is not asked again"
