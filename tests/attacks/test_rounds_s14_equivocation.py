"""Acceptance case S14: an organisation signs two different updates for one round, and neither counts."""

from base64 import b64decode
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import Message

from fl_server.audit_log import create_audit_log, read_events
from fl_server.owner import read_rounds
from fl_server.round_store import open_round_store
from fl_server.rounds import conduct_rounds
from scaleot_core.errors import Reason
from scaleot_core.federation.messages import UpdateStatement
from scaleot_core.federation.signing import open_signed
from scaleot_core.progress import SilentReporter
from tests.support.grids import SpoiltGrid, key_of, owner_key, respoken, set_stage
from tests.support.updates import random_state

NODE, CLIENT = 3, "clinic-1"


class TwoFaced(SpoiltGrid):
    """Client 1 answers its first request only after the second, and each with an update of its own."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.held: list[Message] = []

    def pull_messages(self, message_ids):  # type: ignore[no-untyped-def]
        replies = []
        for reply in super().pull_messages(message_ids):
            if (reply.metadata.src_node_id, reply.metadata.message_type) != (NODE, "train"):
                replies.append(reply)
                continue
            self.held.append(respoken(reply, state=random_state(len(self.held))))
        if len(self.held) >= 2:
            wanted = [reply for reply in self.held if reply.metadata.reply_to_message_id in list(message_ids)]
            replies += wanted
        return replies


def test_s14_two_different_updates_are_both_refused_and_the_audit_log_has_both_signatures(tmp_path: Path) -> None:
    create_audit_log(tmp_path / "audit.jsonl", owner_key().public, now=datetime.now(UTC))
    directory = tmp_path / "run"
    directory.mkdir()
    stage = set_stage(directory, audit_log=Path("../audit.jsonl"))
    stage.grid.__class__ = TwoFaced
    stage.grid.held = []  # type: ignore[attr-defined]
    conduct_rounds(stage.exchange, directory, SilentReporter())
    (record,) = read_rounds(directory)
    assert record.clients == ("clinic-0", "clinic-2")
    assert [(who.client, who.reason) for who in record.rejected] == [(CLIENT, Reason.EQUIVOCATION)]
    events = [line.entry for line in read_events(tmp_path / "audit.jsonl")]
    (event,) = [entry for entry in events if entry.type == "update.equivocation"]
    statements = [
        open_signed(b64decode(envelope), UpdateStatement, key_of(CLIENT).public) for envelope in event.body["envelopes"]
    ]
    assert len(statements) == 2 and statements[0].update_sha256 != statements[1].update_sha256
    with open_round_store(directory, "run-1") as store:
        assert store.hard_refusals() == {CLIENT: [1]}
