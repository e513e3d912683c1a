"""Acceptance case S13: an honest, signed update is sent again where it does not belong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fl_server.exchange import Exchange
from fl_server.owner import ADAPTER_FILE, read_rounds
from fl_server.round_store import open_round_store
from fl_server.rounds import conduct_rounds
from scaleot_core.errors import Reason
from scaleot_core.progress import SilentReporter
from tests.support.grids import SpoiltGrid, respoken, set_stage

CLIENT = "clinic-1"


def conduct(directory: Path, fault: Callable[[Message], Message | None], **changes: Any) -> None:
    directory.mkdir(exist_ok=True)
    conduct_rounds(set_stage(directory, faults={1: fault}, **changes).exchange, directory, SilentReporter())


def test_s13_the_update_of_the_round_before_is_stale_and_changes_no_bit(tmp_path: Path) -> None:
    first: list[Any] = []

    def replay(reply: Message) -> Message:
        first.append(reply.content)
        reply.content = first[0]
        return reply

    def silent_in_round_2(reply: Message) -> Message | None:
        first.append(reply.content)
        return reply if len(first) == 1 else None

    conduct(tmp_path / "replayed", replay, rounds=2)
    first.clear()
    conduct(tmp_path / "silent", silent_in_round_2, rounds=2)
    replayed, silent = tmp_path / "replayed", tmp_path / "silent"
    assert [(who.client, who.reason) for who in read_rounds(replayed)[1].rejected] == [(CLIENT, Reason.STALE)]
    assert (replayed / ADAPTER_FILE).read_bytes() == (silent / ADAPTER_FILE).read_bytes()
    with open_round_store(replayed, "run-1") as store:
        assert store.hard_refusals() == {}, "anybody may have kept it and sent it again"


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": "d" * 64},
        {"base_sha256": "d" * 64},
        {"bundle_digest": "d" * 64},
        {"run": "run-2"},
        {"attempt": 7},
        {"instructions_sha256": "d" * 64},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_s13_an_update_for_another_request_is_not_bound_to_this_one(tmp_path: Path, changes: dict[str, Any]) -> None:
    conduct(tmp_path, lambda reply: respoken(reply, **changes))
    (record,) = read_rounds(tmp_path)
    assert [(who.client, who.reason) for who in record.rejected] == [(CLIENT, Reason.BINDING)]


def test_s13_one_update_however_often_it_comes_counts_once(tmp_path: Path) -> None:
    """The first request is answered late, so that the client is asked again and both answers come."""
    stage = set_stage(tmp_path)

    class Twice(SpoiltGrid):
        """Holds the first training reply of client 1 back until the second request has been sent."""

        held: Message | None = None
        is_second_sent = False

        def push_messages(self, messages: Any) -> Any:
            messages = list(messages)
            is_asked = [one.metadata.dst_node_id == 3 and one.metadata.message_type == "train" for one in messages]
            self.is_second_sent = self.is_second_sent or (any(is_asked) and self.held is not None)
            return super().push_messages(messages)

        def pull_messages(self, message_ids: Any) -> list[Message]:
            if self.held is not None and self.is_second_sent:
                wanted = self.held.metadata.reply_to_message_id in list(message_ids)
                return [self.held] if wanted else super().pull_messages(message_ids)
            replies = super().pull_messages(message_ids)
            for reply in replies:
                if reply.metadata.src_node_id == 3 and reply.metadata.message_type == "train":
                    self.held = reply
                    return []
            return replies

    stage.grid.__class__ = Twice
    exchange = Exchange(stage.grid, clock=stage.clock, sleep=stage.clock.sleep)
    conduct_rounds(exchange, tmp_path, SilentReporter())
    (record,) = read_rounds(tmp_path)
    assert record.clients == ("clinic-0", CLIENT, "clinic-2") and record.rejected == ()
