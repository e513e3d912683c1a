"""Differential privacy through a whole simulated federation: planned, kept, reported."""

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fl_clients.client_app import app as client_app
from fl_server.comparison.compare import compare
from fl_server.data import read_data
from fl_server.exchange import Exchange
from fl_server.grid import InProcessGrid
from fl_server.in_process import run_in_process
from fl_server.owner import read_adapter, read_rounds
from fl_server.privacy import compared_noises, planned_lines
from fl_server.rounds import conduct_rounds
from fl_server.simulation import simulate
from scaleot_core.errors import BudgetExhaustedError, Reason
from scaleot_core.privacy.accountant import epsilon_of
from scaleot_core.privacy.budget import Budget
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.ledger_file import read_chain
from scaleot_core.privacy.ledger_lines import Committed
from scaleot_core.privacy.mechanism import Mechanism
from scaleot_core.privacy.private_rounds import AskedTraining, mechanism_for_round
from scaleot_core.progress import SilentReporter
from scaleot_core.run_file import RunFile
from scaleot_core.seeds import derive_seed
from tests.support.private_updates import private_federation
from tests.support.tiny_task import tiny_run, write_task


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = write_task(tmp_path_factory.mktemp("task"))
    before = os.environ.get("SCALEOT_CACHE")
    os.environ["SCALEOT_CACHE"] = str(root / "cache")
    yield root
    os.environ.pop("SCALEOT_CACHE") if before is None else os.environ.update(SCALEOT_CACHE=before)


def private_run(task: Path, mechanism: str, *changes: str) -> RunFile:
    small = ("evaluation.full_fine_tuning=false", "federation.batch_size=4", "privacy.num_directions=2")
    return tiny_run(task, *small, f"privacy.mechanism={mechanism}", "privacy.delta=0.01", *changes)


@pytest.mark.parametrize("mechanism", ["dp-sgd", "dpzero"])
def test_a_simulation_reports_what_every_client_spent(task: Path, tmp_path: Path, mechanism: str) -> None:
    report = simulate(private_run(task, mechanism), tmp_path, SilentReporter()).to_json()
    privacy = report["privacy"]
    assert (privacy["mechanism"], privacy["delta"], privacy["unit"]) == (mechanism, 0.01, "one training record")
    assert privacy["neighbouring"] == "add/remove" and "Poisson sampling with secret coins" in privacy["sampling"]
    assert [client["client"] for client in privacy["clients"]] == [f"data-owner-{number}" for number in range(3)]
    assert all(7.5 < client["epsilon_spent"] <= 8.0 for client in privacy["clients"])
    assert privacy["epsilon_spent"] == max(client["epsilon_spent"] for client in privacy["clients"])
    assert all("add/remove" in client["statement"] for client in privacy["clients"])
    assert [one["train_loss"] for one in report["federation"]["rounds"]] == [None, None]
    assert json.loads((tmp_path / "report.json").read_text())["privacy"] == privacy
    assert "one training record" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("mechanism", ["dp-sgd", "dpzero", "update-gaussian"])
def test_the_server_s_books_and_each_data_owner_s_ledger_say_the_same(tmp_path: Path, mechanism: str) -> None:
    federation = private_federation(tmp_path, mechanism, clients=2)
    run_in_process(federation.owner_directory, federation.data_owner_directories, SilentReporter())
    records = read_rounds(federation.owner_directory)
    assert [record.clients for record in records] == [("clinic-0", "clinic-1")] * 2
    for client, directory in zip(("clinic-0", "clinic-1"), federation.data_owner_directories, strict=True):
        chain = read_chain(directory / "ledger")
        assert sum(isinstance(entry, Committed) for entry in chain.entries) == 2
        assert records[-1].privacy[client].ledger_head == chain.head
        assert 7.5 < Budget(chain, epsilon_of).spent <= 8.0
    moved = read_adapter(federation.owner_directory / "adapter.safetensors")
    assert any(not moved[name].equal(start) for name, start in federation.initial_adapter.items())


def test_rounds_that_pass_the_budget_are_refused_before_any_work_with_those_that_fit(
    task: Path, tmp_path: Path
) -> None:
    with pytest.raises(BudgetExhaustedError) as refused:
        simulate(
            private_run(task, "dp-sgd", "privacy.noise_multiplier=0.8", "federation.rounds=500"),
            tmp_path,
            SilentReporter(),
        )
    assert 0 < refused.value.rounds_that_fit < 500
    assert not (tmp_path / "bundle").exists()


def test_a_comparison_with_one_point_that_passes_the_budget_is_refused_before_any_work(
    task: Path, tmp_path: Path
) -> None:
    (tmp_path / "grid.toml").write_text(
        '[compare]\nbuilders = ["uniform"]\nseeds = [0]\n[compare.vary]\n"federation.rounds" = [1, 500]\n'
    )
    changes = ("privacy.mechanism=dp-sgd", "privacy.delta=0.01", "privacy.noise_multiplier=1.5")
    with pytest.raises(BudgetExhaustedError):
        compare(tiny_run(task, *changes, file=tmp_path / "grid.toml"), tmp_path / "out", SilentReporter())
    assert not (tmp_path / "out").exists()


def test_an_update_that_was_clipped_too_wide_is_refused_in_its_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One organisation's build takes another bound than it was asked for, and says nothing of it."""
    federation = private_federation(tmp_path, "update-gaussian", clients=2)
    its_batches = derive_seed(federation.settings.seed, "local", 1, "clinic-0")

    def too_wide(asked: AskedTraining, event: PrivacyEvent, *, batch_seed: int, **rest: Any) -> Mechanism:
        if batch_seed == its_batches:
            wide = asked.privacy.model_copy(update={"max_grad_norm": 4 * asked.privacy.max_grad_norm})
            asked = replace(asked, privacy=wide)
        return mechanism_for_round(asked, event, batch_seed=batch_seed, **rest)

    monkeypatch.setattr("fl_clients.local_update.mechanism_for_round", too_wide)
    run_in_process(federation.owner_directory, federation.data_owner_directories, SilentReporter())
    first, second = read_rounds(federation.owner_directory)
    assert (first.clients, second.clients) == (("clinic-1",), ("clinic-0", "clinic-1"))
    (rejected,) = first.rejected
    assert (rejected.client, rejected.reason) == ("clinic-0", Reason.NORM)
    assert "by its clipping and the noise that it names" in rejected.detail


def test_what_privacy_will_cost_is_said_beforehand_and_a_delta_too_large_is_warned_of(task: Path) -> None:
    run = private_run(task, "dp-sgd", "privacy.delta=0.1")
    lines = planned_lines(run, read_data(run, SilentReporter()).partitions)
    assert sum(": epsilon 8 at delta 0.1" in line or "epsilon 7.9" in line for line in lines) == 3
    assert sum(line.startswith("warning: data-owner-") for line in lines) >= 1
    quiet = private_run(task, "dp-sgd", "privacy.delta=0.001")
    assert not any("warning" in line for line in planned_lines(quiet, read_data(quiet, SilentReporter()).partitions))


def test_check_names_what_every_figure_is_about_and_compares_the_noises_of_a_few_scalars(task: Path) -> None:
    run = private_run(task, "dpzero", "privacy.delta=0.001", "privacy.num_directions=1")
    partitions = read_data(run, SilentReporter()).partitions
    for line in planned_lines(run, partitions):
        assert "at delta 0.001 for one training record, neighbouring data sets by add/remove, Poisson sampling" in line
    (line,) = compared_noises(run, partitions)
    assert line.startswith("least for data-owner-0: ")
    assert all(noise in line for noise in ("gaussian", "discrete-gaussian", "laplace", "staircase", "lmo"))
    assert compared_noises(private_run(task, "dp-sgd"), partitions) == []
    assert compared_noises(private_run(task, "dpzero", "privacy.noise_multiplier=9"), partitions) == []


def test_a_comparison_sets_mechanisms_side_by_side(task: Path, tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(
        '[compare]\nbuilders = ["uniform"]\nseeds = [0]\n[compare.vary]\n'
        '"privacy.mechanism" = ["none", "dp-sgd", "dpzero"]\n'
    )
    run = tiny_run(
        task, "evaluation.full_fine_tuning=false", "privacy.delta=0.01", "privacy.num_directions=2",
        file=tmp_path / "grid.toml",
    )  # fmt: skip
    points = compare(run, tmp_path / "out", SilentReporter())
    assert [point["labels"]["privacy.mechanism"] for point in points] == ["none", "dp-sgd", "dpzero"]
    assert [[budget["mechanism"] for budget in point.get("budgets", ())] for point in points] == [
        [],
        ["dp-sgd"],
        ["dpzero"],
    ]
    assert [point["rounds"][0]["train_loss"] is None for point in points] == [False, True, True]
    assert len({point["results"]["plug_in"]["loss"] for point in points}) == 3


class RestoringGrid(InProcessGrid):
    """Puts a data owner's ledger back as it was before the run, when the second round begins."""

    def __init__(self, directories: Sequence[Path], backup: Path) -> None:
        super().__init__(client_app, [{"data-owner": str(directory)} for directory in directories])
        self._ledger, self._backup, self._asked = directories[0] / "ledger", backup, 0
        shutil.copytree(self._ledger, backup)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        asked = list(messages)
        self._asked += sum(message.metadata.message_type == "train" for message in asked)
        if self._asked == 3:
            shutil.rmtree(self._ledger)
            shutil.copytree(self._backup, self._ledger)
        return super().push_messages(asked)


def test_s23_the_server_tells_each_client_the_head_it_saw_and_a_restored_ledger_takes_no_further_part(
    tmp_path: Path,
) -> None:
    federation = private_federation(tmp_path / "federation", "dp-sgd", clients=2)
    grid = RestoringGrid(federation.data_owner_directories, tmp_path / "backup")
    exchange = Exchange(grid, clock=time.monotonic, sleep=time.sleep)
    conduct_rounds(exchange, federation.owner_directory, SilentReporter())
    first, second = read_rounds(federation.owner_directory)
    assert first.clients == ("clinic-0", "clinic-1")
    assert second.clients == ("clinic-1",)
    (rejected,) = second.rejected
    assert rejected.client == "clinic-0" and "privacy.ledger" in rejected.detail


@pytest.mark.parametrize("aggregation", ["fedavg", "ffa"])
def test_the_server_s_own_noise_is_planned_and_reported_for_whole_clients(
    task: Path, tmp_path: Path, aggregation: str
) -> None:
    changes = (f"federation.aggregation={aggregation}", "federation.clients_per_round=2", "privacy.delta=0.4")
    run = private_run(task, "client-level", *changes)
    line, warning = planned_lines(run, read_data(run, SilentReporter()).partitions)
    assert "server: updates clipped to 1, gaussian noise" in line and "on the sum of 2, 2 releases" in line
    assert "at delta 0.4 for one client" in line and "not below one over the 3 clients" in warning
    assert line.endswith("the trusted server, neighbouring data sets by zero-out, without sampling")
    report = simulate(run, tmp_path, SilentReporter()).to_json()
    privacy = report["privacy"]
    assert privacy["mechanism"] == "client-level" and "trusted server" in privacy["unit"]
    rounds = report["federation"]["rounds"]
    assert [one["train_loss"] for one in rounds] == [None, None]
    for client in privacy["clients"]:
        assert client["rounds"] == sum(client["client"] in one["clients"] for one in rounds)
        assert "zero-out" in client["statement"] and "without sampling" in client["statement"]
    assert 7.5 < privacy["epsilon_spent"] <= 8.0 or max(client["rounds"] for client in privacy["clients"]) < 2


def test_a_comparison_adds_the_server_s_noise_too(task: Path, tmp_path: Path) -> None:
    run = private_run(task, "client-level", 'compare.builders=["scaleot"]', "compare.seeds=[0]")
    (point,) = compare(run, tmp_path, SilentReporter())
    assert [one["train_loss"] for one in point["rounds"]] == [None, None]
