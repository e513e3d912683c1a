"""The built-in quickstart in earnest: the embedded model and data, as ``scaleot simulate`` runs them."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fl_server.compress import importance_settings, load_full_model, public_blocks
from scaleot_core.compression.importance import estimate_importance
from scaleot_core.compression.importance_store import SHIPPED_DIRECTORY, find_importance, importance_digest
from scaleot_core.progress import SilentReporter, terminal_or_log_reporter
from scaleot_core.run_file import RunFile

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("quickstart") / "out"
    scaleot = Path(sys.executable).with_name("scaleot")
    finished = subprocess.run([scaleot, "simulate", "--json", "--out", out], capture_output=True, text=True, check=True)
    return json.loads(finished.stdout)


def test_the_plug_in_is_far_better_than_zero_shot(report: dict[str, Any]) -> None:
    plug_in, zero_shot = report["results"]["plug_in"], report["results"]["zero_shot"]
    errors = [metrics["accuracy"] * (1 - metrics["accuracy"]) / metrics["examples"] for metrics in (plug_in, zero_shot)]
    assert plug_in["accuracy"] - zero_shot["accuracy"] > 2 * math.sqrt(sum(errors))
    assert plug_in["loss"] < zero_shot["loss"] / 2


def test_the_plug_in_is_better_than_the_tuned_emulator(report: dict[str, Any]) -> None:
    plug_in, tuned = report["results"]["plug_in"], report["results"]["emulator_tuned"]
    assert plug_in["loss"] < tuned["loss"]
    assert plug_in["accuracy"] > tuned["accuracy"]


def test_at_least_four_clients_take_part_in_every_round(report: dict[str, Any]) -> None:
    assert all(len(one["clients"]) >= 4 for one in report["federation"]["rounds"])
    assert report["config"]["federation"]["partition"] == "dirichlet"


def test_the_simulation_wastes_no_time(report: dict[str, Any]) -> None:
    seconds = report["seconds"]
    work = seconds["importance"] + seconds["build"] + seconds["train"] + seconds["evaluate"]
    work += report["model_privacy"]["seconds"]
    assert seconds["total"] <= 1.25 * work


def test_the_attacks_are_measured_and_each_has_learnt_the_task(report: dict[str, Any]) -> None:
    privacy, untuned = report["model_privacy"], report["results"]["emulator_zero_shot"]
    assert privacy["strong_emulator"]["metrics"]["loss"] < untuned["loss"] / 2
    assert [point["steps"] for point in privacy["healing"]] == [0, 20]
    assert privacy["healing"][1]["tuned"]["metrics"]["loss"] < untuned["loss"] / 2


def test_importance_comes_with_the_package(report: dict[str, Any]) -> None:
    assert report["seconds"]["importance"] < 30


def test_the_shipped_importance_report_is_what_the_settings_make() -> None:
    """Remakes it: a few minutes on two cores. Other processors round otherwise, so scores are compared by rank."""
    run = RunFile()
    full = load_full_model(run.model, SilentReporter())
    blocks, settings = public_blocks(full, run.importance, SilentReporter()), importance_settings(run.importance)
    shipped = find_importance(importance_digest(full.digest, blocks, settings), (SHIPPED_DIRECTORY,))
    assert shipped is not None
    remade = estimate_importance(full, blocks, settings, reporter=terminal_or_log_reporter())
    assert shipped.training_losses[0] == pytest.approx(remade.training_losses[0], rel=0.02)
    ranks = [torch.tensor(scores).argsort().argsort().double() for scores in (shipped.scores, remade.scores)]
    assert float(torch.corrcoef(torch.stack(ranks))[0, 1]) > 0.7
    tail = [sum(made.training_losses[-50:]) / 50 for made in (shipped, remade)]
    assert tail[0] == pytest.approx(tail[1], rel=0.05)
