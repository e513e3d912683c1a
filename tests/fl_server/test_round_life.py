"""What a round does with slow, missing and hostile clients, what it tells them, and how it goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Error, Message
from flwr.app.message import make_message

from fl_server.canary import Canary
from fl_server.exchange import Exchange
from fl_server.owner import ADAPTER_FILE, INITIAL_ADAPTER_FILE, read_adapter, read_rounds
from fl_server.round_store import open_round_store
from fl_server.rounds import conduct_rounds
from fl_server.run_key import read_run_voice
from fl_server.run_status import WAITING, read_status
from fl_server.suspension import reinstate, suspended
from scaleot_core.errors import InputError, Reason, RoundFailedError
from scaleot_core.federation.messages import Receipt
from scaleot_core.federation.signing import open_signed
from scaleot_core.progress import SilentReporter
from scaleot_core.shapes import TensorDict
from tests.support.grids import Stage, respoken, set_stage, stage_again
from tests.support.updates import SHAPES


def conduct(stage: Stage, **options: Any) -> None:
    conduct_rounds(stage.exchange, stage.directory, SilentReporter(), **options)


def silent(reply: Message) -> None:
    return None


def fails(reply: Message) -> Message:
    return make_message(metadata=reply.metadata, error=Error(code=5, reason="gone"))


def huge(reply: Message) -> Message:
    return respoken(reply, state={name: torch.full(shape, 1e6) for name, shape in SHAPES.items()})


def test_f11_a_slow_client_is_asked_again_at_half_the_deadline_and_the_round_closes_at_it(tmp_path: Path) -> None:
    stage = set_stage(tmp_path, clients=5, faults={0: silent}, quorum=4, round_deadline_seconds=100.0)
    conduct(stage)
    (record,) = read_rounds(tmp_path)
    assert len(record.clients) == 4 and record.seconds == pytest.approx(100.0, abs=1.0)
    with open_round_store(tmp_path, "run-1") as store:
        current = store.newest()
        assert current is not None and current.attempts("clinic-0") == 2 and current.attempts("clinic-1") == 1


def test_with_over_selection_the_slowest_is_not_waited_for(tmp_path: Path) -> None:
    changes = {"clients_per_round": 3, "over_selection": 1.34, "quorum": 2, "round_deadline_seconds": 100.0}
    stage = set_stage(tmp_path, clients=4, faults={1: silent}, rounds=2, **changes)
    conduct(stage)
    first, second = read_rounds(tmp_path)
    assert first.clients == ("clinic-0", "clinic-2", "clinic-3") and first.seconds < 1.0
    assert [(who.client, who.reason) for who in first.rejected] == [("clinic-1", Reason.STALE)]
    assert second.clients == first.clients and second.rejected == (), "it owes an answer and is not asked"


def test_a_round_without_its_quorum_stays_open_and_goes_on_with_what_it_has(tmp_path: Path) -> None:
    stage = set_stage(tmp_path, clients=3, faults={0: fails, 1: fails}, quorum=2)
    with pytest.raises(RoundFailedError, match=r"1 accepted updates, its quorum is 2[\s\S]*clinic-0: E_CLIENT"):
        conduct(stage)
    assert read_status(tmp_path).state == "OPEN"
    assert [(one.client, one.status) for one in read_status(tmp_path).asked] == [
        ("clinic-0", "refused"),
        ("clinic-1", "refused"),
        ("clinic-2", "accepted"),
    ]
    asked: list[int] = []

    def count(reply: Message) -> Message:
        asked.append(reply.metadata.src_node_id)
        return reply

    conduct(stage_again(stage, faults=dict.fromkeys(range(3), count)))
    (record,) = read_rounds(tmp_path)
    assert record.clients == ("clinic-0", "clinic-1", "clinic-2") and record.failure is None
    assert sorted(asked) == [2, 3], "clinic-2's update was kept"


def test_a_finished_run_that_is_started_again_asks_nobody(tmp_path: Path) -> None:
    stage = set_stage(tmp_path, rounds=2)
    conduct(stage)
    before = (tmp_path / ADAPTER_FILE).read_bytes()
    conduct(stage_again(stage, faults=dict.fromkeys(range(3), fails)))
    assert (tmp_path / ADAPTER_FILE).read_bytes() == before and len(read_rounds(tmp_path)) == 2


def test_outputs_that_a_crash_kept_from_being_written_are_written_at_the_next_start(tmp_path: Path) -> None:
    stage = set_stage(tmp_path, rounds=2)
    conduct(stage)
    before = (tmp_path / ADAPTER_FILE).read_bytes()
    (tmp_path / ADAPTER_FILE).unlink()
    (tmp_path / "rounds.json").unlink()
    conduct(stage_again(stage))
    assert (tmp_path / ADAPTER_FILE).read_bytes() == before and len(read_rounds(tmp_path)) == 2


class ReceiptsGrid:
    """Notes the receipts that pass."""

    def __init__(self, stage: Stage) -> None:
        self.grid, self.seen = stage.grid, []  # type: ignore[var-annotated]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.grid, name)

    def push_messages(self, messages: Any) -> Any:
        messages = list(messages)
        for message in messages:
            self.seen += message.content["statement"].get("receipts", [])
        return self.grid.push_messages(messages)


def test_everybody_who_was_asked_gets_one_signed_receipt_for_each_round(tmp_path: Path) -> None:
    stage = set_stage(tmp_path, faults={1: huge}, rounds=2)
    grid = ReceiptsGrid(stage)
    exchange = Exchange(grid, clock=stage.clock, sleep=stage.clock.sleep)  # type: ignore[arg-type]
    conduct_rounds(exchange, tmp_path, SilentReporter())
    receipts = [open_signed(one, Receipt, read_run_voice(tmp_path).key.public) for one in grid.seen]
    told = {(one.round, one.client): (one.status, one.code, one.is_retryable) for one in receipts}
    assert len(receipts) == len(told) == 6
    assert told[1, "clinic-0"] == ("accepted", None, False)
    assert told[2, "clinic-1"] == ("refused", "E_NORM", False)
    with open_round_store(tmp_path, "run-1") as store:
        assert store.waiting_for_receipts() == ()


def test_three_hard_refusals_suspend_a_client_until_the_operator_reinstates_it(tmp_path: Path) -> None:
    stage = set_stage(tmp_path, faults={1: huge}, rounds=5)
    conduct(stage)
    refused = [[who.reason for who in record.rejected] for record in read_rounds(tmp_path)]
    assert refused == [[Reason.NORM]] * 3 + [[]] * 2
    assert read_status(tmp_path).suspended == ("clinic-1",)
    reinstate(tmp_path, "clinic-1")
    assert read_status(tmp_path).suspended == ()
    with pytest.raises(InputError, match="never refused"):
        reinstate(tmp_path, "clinic-0")


@pytest.mark.parametrize(
    ("rounds", "is_suspended"),
    [([1, 2], False), ([1, 2, 3], True), ([1, 5, 10], True), ([1, 6, 11], False), ([1, 11, 12, 20], True)],
)
def test_only_refusals_within_ten_rounds_add_up(rounds: list[int], is_suspended: bool) -> None:
    assert suspended({"a": rounds}) == (("a",) if is_suspended else ())


def mean_of(adapter: TensorDict) -> float:
    return 1.0 + max(float(adapter["1.q_proj.lora_A"].mean()), 0.0)


def test_a_round_whose_canary_falls_is_aborted_and_its_base_stays(tmp_path: Path) -> None:
    stage = set_stage(tmp_path, rounds=2)
    conduct(stage, canary=Canary(mean_of, tolerance=0.2))
    first, second = read_rounds(tmp_path)
    assert first.aborted is not None and "canary rose from" in first.aborted and first.canary_loss is not None
    assert second.aborted is not None
    reached, initial = read_adapter(tmp_path / ADAPTER_FILE), read_adapter(tmp_path / INITIAL_ADAPTER_FILE)
    assert all(torch.equal(reached[name], initial[name]) for name in initial)
    status = read_status(tmp_path)
    assert (status.state, status.is_finished) == ("ABORTED", True)
    assert [one.state for one in status.history] == ["ABORTED", "ABORTED"]


def test_a_canary_within_its_tolerance_is_recorded_and_changes_nothing(tmp_path: Path) -> None:
    with_canary, without = tmp_path / "with", tmp_path / "without"
    for directory, canary in ((with_canary, Canary(mean_of, tolerance=10.0)), (without, None)):
        directory.mkdir()
        conduct(set_stage(directory), canary=canary)
    assert (with_canary / ADAPTER_FILE).read_bytes() == (without / ADAPTER_FILE).read_bytes()
    assert read_rounds(with_canary)[0].canary_loss is not None and read_rounds(without)[0].canary_loss is None


def test_the_status_says_where_the_run_stands(tmp_path: Path) -> None:
    stage = set_stage(tmp_path, rounds=2, faults={1: huge})
    before = read_status(tmp_path)
    assert (before.state, before.round_number, before.asked, before.is_finished) == (WAITING, 0, (), False)
    seen = []

    def look(reply: Message) -> Message:
        seen.append(read_status(tmp_path))
        return reply

    stage.grid._faults[4] = look  # type: ignore[attr-defined]
    conduct(stage)
    during = {one.client: (one.status, one.code) for one in seen[0].asked}
    assert during == {"clinic-0": ("accepted", None), "clinic-1": ("refused", "E_NORM"), "clinic-2": ("waiting", None)}
    assert [one.client for one in seen[0].asked if one.is_waited_for] == ["clinic-2"]
    after = read_status(tmp_path)
    assert after.is_finished and [one.train_loss for one in after.history] == [1.0, 1.0]
    assert after.history[1].refused == {"clinic-1": "E_NORM"}
