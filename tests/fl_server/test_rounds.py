import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from flwr.app import Error, Message
from flwr.app.message import make_message

from fl_server.owner import ADAPTER_FILE, ROUNDS_FILE, read_adapter, read_rounds
from fl_server.rounds import conduct_rounds
from scaleot_core.errors import InputError, Reason, RoundFailedError
from scaleot_core.progress import SilentReporter
from scaleot_core.shapes import TensorDict
from tests.support.grids import Stage, set_stage


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


def test_an_error_reply_is_refused_and_its_text_is_kept_nowhere(tmp_path: Path) -> None:
    conduct(set_stage(tmp_path, faults={1: _errs}))
    (record,) = read_rounds(tmp_path)
    assert [(who.client, who.reason) for who in record.rejected] == [("clinic-1", Reason.ERROR)]
    assert "Meier" not in (tmp_path / ROUNDS_FILE).read_text()


def test_a_client_whose_node_fails_is_asked_again_in_the_same_round(tmp_path: Path) -> None:
    seen = []

    def once(reply: Message) -> Message:
        seen.append(reply)
        return _errs(reply) if len(seen) == 1 else reply

    conduct(set_stage(tmp_path, faults={1: once}))
    (record,) = read_rounds(tmp_path)
    assert (len(record.clients), record.rejected, len(seen)) == (3, (), 2)


def test_the_rounds_after_a_bad_one_take_the_client_back(tmp_path: Path) -> None:
    seen = []

    def thrice(reply: Message) -> Message:
        seen.append(reply)
        return _errs(reply) if len(seen) <= 3 else reply

    conduct(set_stage(tmp_path, faults={1: thrice}, rounds=2, max_attempts=3))
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


@pytest.mark.parametrize(
    ("aggregation", "changes", "step"),
    [
        ("median", {}, 3.0),
        ("trimmed_mean", {"trimmed_share": 0.2}, 3.0),
        ("multi_krum", {"assumed_attackers": 1}, 2.5),
        ("geometric_median", {}, 3.0),
    ],
)
def test_a_round_follows_its_rule_and_records_what_each_client_counts_for(
    tmp_path: Path, aggregation: str, changes: dict[str, float], step: float
) -> None:
    stage = set_stage(tmp_path, clients=5, aggregation=aggregation, **changes)
    adapter = conduct(stage)  # clients step by 1 to 5: all on one line, the two nearest of the ends' are further away
    for name, base in stage.initial_adapter.items():
        assert torch.allclose(adapter[name], base + step, atol=1e-3)
    (record,) = read_rounds(tmp_path)
    holds_shares = aggregation in ("multi_krum", "geometric_median")
    assert sum(record.client_shares.values()) == pytest.approx(1 if holds_shares else 0)
    assert set(record.client_shares) == (set(record.clients) if holds_shares else set())


def test_a_round_of_products_records_what_the_rank_had_no_room_for(tmp_path: Path) -> None:
    stage = set_stage(tmp_path, clients=5, aggregation="product")
    adapter = conduct(stage)
    (record,) = read_rounds(tmp_path)
    base = stage.initial_adapter
    down, up = base["1.q_proj.lora_A"], base["1.q_proj.lora_B"]
    products = ((up + step) @ (down + step) * (10 * step / 150) for step in range(1, 6))
    dense = sum(products, torch.zeros(8, 8))
    reached = adapter["1.q_proj.lora_B"] @ adapter["1.q_proj.lora_A"]
    missed = float((reached - dense).norm() / dense.norm())
    assert record.residual_share == pytest.approx(missed, rel=1e-3) and 0 < missed < 0.1


def test_fewer_updates_than_multi_krum_needs_fail_the_round_with_the_numbers_and_save_what_was_reached(
    tmp_path: Path,
) -> None:
    stage = set_stage(tmp_path, clients=5, faults={2: _errs}, aggregation="multi_krum", assumed_attackers=1)
    with pytest.raises(RoundFailedError, match=r"round 1: multi_krum .* got 4[\s\S]*clinic-2: E_CLIENT"):
        conduct(stage)
    (record,) = read_rounds(tmp_path)
    assert record.clients == () and record.failure is not None and "got 4" in record.failure
    reached = read_adapter(tmp_path / ADAPTER_FILE)
    assert all(torch.equal(reached[name], tensor) for name, tensor in stage.initial_adapter.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aggregation": "multi_krum", "assumed_attackers": 1}, r"at least 5 clients .* got 3"),
        ({"aggregation": "multi_krum"}, "assumed_attackers of at least 1"),
        ({"aggregation": "trimmed_mean"}, "trimmed_share above 0"),
    ],
)
def test_a_rule_without_its_number_or_its_clients_is_refused_before_any_round(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        conduct(set_stage(tmp_path, **changes))
    assert not (tmp_path / ROUNDS_FILE).exists()


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
    adapter_bytes, resident = 4 * 1024 * 1024, []

    def weigh(reply: Message) -> Message:
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
        return reply

    faults = dict.fromkeys(range(30), weigh)
    conduct(set_stage(tmp_path, clients=30, faults=faults, shapes={"w": (1024, 1024)}, max_update_norm=1e6))
    assert len(read_rounds(tmp_path)[0].clients) == len(resident) == 30
    early, late = sum(resident[4:10]) / 6, sum(resident[24:]) / 6
    assert late - early < 8 * adapter_bytes, "twenty more updates would be 80 MiB, their bytes as much again"
