"""Acceptance case S15: hostile values. The right code each, and the aggregate is that without the attacker."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import Message

from fl_server.owner import ADAPTER_FILE, read_rounds
from fl_server.round_store import open_round_store
from fl_server.rounds import conduct_rounds
from scaleot_core.errors import Reason
from scaleot_core.progress import SilentReporter
from scaleot_core.shapes import TensorDict
from tests.support.grids import respoken, set_stage
from tests.support.updates import SHAPES, random_state

DOWN, UP = SHAPES


def full(down: float, up: float) -> TensorDict:
    return {DOWN: torch.full(SHAPES[DOWN], down), UP: torch.full(SHAPES[UP], up)}


def one(value: float) -> TensorDict:
    state = random_state(5)
    state[DOWN][0, 0] = value
    return state


BOMBS: dict[str, tuple[TensorDict, Reason]] = {
    "NaN": (one(math.nan), Reason.NONFINITE),
    "infinity": (one(math.inf), Reason.NONFINITE),
    "1e30": (one(1e30), Reason.NORM),
    "the largest float32": (one(3.4e38), Reason.NORM),
    "a product beyond the bound of small factors": (full(200.0, 200.0), Reason.NORM),
    "factors that grow as their partners shrink": (full(1e6, 1e-6), Reason.NORM),
}
HARMLESS = {"negative zero": full(-0.0, -0.0), "denormals": full(1e-42, -1e-42)}


def adapter_of_a_round(directory: Path, fault: Callable[[Message], Message | None]) -> bytes:
    stage = set_stage(directory, faults={1: fault}, max_update_norm=1_000.0)
    conduct_rounds(stage.exchange, directory, SilentReporter())
    return (directory / ADAPTER_FILE).read_bytes()


@pytest.fixture(scope="module")
def without_the_attacker(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return adapter_of_a_round(tmp_path_factory.mktemp("honest"), lambda reply: None)


@pytest.mark.parametrize("name", BOMBS)
def test_s15_a_value_bomb_is_refused_counted_and_put_aside(
    tmp_path: Path, without_the_attacker: bytes, name: str
) -> None:
    state, reason = BOMBS[name]
    assert adapter_of_a_round(tmp_path, lambda reply: respoken(reply, state=state)) == without_the_attacker
    (record,) = read_rounds(tmp_path)
    assert [(who.client, who.reason) for who in record.rejected] == [("clinic-1", reason)]
    with open_round_store(tmp_path, "run-1") as store:
        assert store.hard_refusals() == {"clinic-1": [1]}, "signed for this very request"
    (note,) = (tmp_path / "quarantine").glob("*.json")
    assert reason.value in note.read_text()


@pytest.mark.parametrize("name", HARMLESS)
def test_s15_odd_but_finite_values_count(tmp_path: Path, name: str) -> None:
    adapter_of_a_round(tmp_path, lambda reply: respoken(reply, state=HARMLESS[name]))
    (record,) = read_rounds(tmp_path)
    assert record.rejected == ()
