"""Ten clients, one of them hostile, under every rule of aggregation: the replies that break Flower's own strategies."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from flwr.app import Message

from fl_server.owner import ADAPTER_FILE, read_adapter, read_rounds
from fl_server.rounds import conduct_rounds
from scaleot_core.errors import Reason
from scaleot_core.progress import SilentReporter
from scaleot_core.shapes import TensorDict
from tests.support.grids import Fault, respoken, set_stage
from tests.support.updates import SHAPES, random_state

CLIENTS, HOSTILE = 10, 4
RULES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "product": {},
    "median": {},
    "trimmed_mean": {"trimmed_share": 0.2},
    "multi_krum": {"assumed_attackers": 2},
    "geometric_median": {},
}
ROBUST = ("median", "trimmed_mean", "multi_krum", "geometric_median")


def constant(value: float) -> TensorDict:
    return {name: torch.full(shape, value) for name, shape in SHAPES.items()}


def one_tensor(value: float) -> TensorDict:
    return {**random_state(5), "1.q_proj.lora_A": torch.full((2, 8), value)}


REPLIES: dict[str, tuple[Fault, Reason]] = {
    "one NaN tensor": (lambda reply: respoken(reply, state=one_tensor(math.nan)), Reason.NONFINITE),
    "one Inf tensor": (lambda reply: respoken(reply, state=one_tensor(math.inf)), Reason.NONFINITE),
    "values -1e6": (lambda reply: respoken(reply, state=constant(-1e6)), Reason.NORM),
    "num-examples 1e12": (
        lambda reply: respoken(reply, state=constant(-5.0), num_examples=10**12),
        Reason.WEIGHT,
    ),
    "num-examples -800": (lambda reply: respoken(reply, num_examples=-800), Reason.WEIGHT),
    "num-examples NaN": (lambda reply: respoken(reply, num_examples="NaN"), Reason.WEIGHT),
    "shape (1,1)": (
        lambda reply: respoken(reply, state={**random_state(5), "1.q_proj.lora_A": torch.zeros(1, 1)}),
        Reason.SCHEMA,
    ),
}


def adapter_of_a_round(directory: Path, rule: str, fault: Fault | None, **changes: Any) -> TensorDict:
    stage = set_stage(
        directory,
        clients=CLIENTS,
        faults={HOSTILE: fault} if fault else {},
        aggregation=rule,
        **RULES[rule],
        **changes,
    )
    conduct_rounds(stage.exchange, directory, SilentReporter())
    return read_adapter(directory / ADAPTER_FILE)


@cache
def without_the_attacker(rule: str) -> TensorDict:
    with TemporaryDirectory() as directory:
        return adapter_of_a_round(Path(directory), rule, lambda reply: None)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("reply", REPLIES)
def test_a_hostile_reply_is_refused_and_changes_no_bit_under_any_rule(tmp_path: Path, rule: str, reply: str) -> None:
    fault, reason = REPLIES[reply]
    adapter = adapter_of_a_round(tmp_path, rule, fault)
    (record,) = read_rounds(tmp_path)
    assert [(who.client, who.reason) for who in record.rejected] == [(f"clinic-{HOSTILE}", reason)]
    assert all(torch.equal(adapter[name], tensor) for name, tensor in without_the_attacker(rule).items())


# What validation lets through because it keeps every bound: values of any size where the norm is not bounded, and the
# largest number of examples that one client may claim.

WITHIN_THE_BOUNDS: dict[str, Callable[[Message], Message]] = {
    "values -1e6": lambda reply: respoken(reply, state=constant(-1e6)),
    "values 1e30": lambda reply: respoken(reply, state=constant(1e30)),
    "the most examples": lambda reply: respoken(reply, state=constant(-500.0), num_examples=10_000_000),
}


@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize("reply", WITHIN_THE_BOUNDS)
def test_one_accepted_attacker_leaves_a_robust_rule_among_the_honest(tmp_path: Path, rule: str, reply: str) -> None:
    adapter = adapter_of_a_round(tmp_path, rule, WITHIN_THE_BOUNDS[reply], max_update_norm=1e70)
    (record,) = read_rounds(tmp_path)
    assert f"clinic-{HOSTILE}" in record.clients
    base = random_state(0)
    for name, tensor in adapter.items():  # honest clients step by 1 to 10
        assert bool(((tensor - base[name] > 0.9) & (tensor - base[name] < 10.1)).all())
    if rule == "multi_krum":
        assert record.client_shares[f"clinic-{HOSTILE}"] == 0
    if rule == "geometric_median":
        assert record.client_shares[f"clinic-{HOSTILE}"] < 0.02


@pytest.mark.parametrize("rule", ["fedavg", "product"])
@pytest.mark.parametrize("reply", WITHIN_THE_BOUNDS)
def test_one_accepted_attacker_carries_a_mean_away(tmp_path: Path, rule: str, reply: str) -> None:
    adapter = adapter_of_a_round(tmp_path, rule, WITHIN_THE_BOUNDS[reply], max_update_norm=1e70)
    base = random_state(0)
    assert max(float((tensor - base[name]).abs().max()) for name, tensor in adapter.items()) > 100
