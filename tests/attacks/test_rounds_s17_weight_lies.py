"""Acceptance case S17: lies about the number of examples, up to what the organisation was registered for."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fl_server.membership import MEMBERS_FILE, encode_members
from fl_server.owner import ADAPTER_FILE, read_rounds
from fl_server.rounds import conduct_rounds
from scaleot_core.errors import Reason
from scaleot_core.progress import SilentReporter
from tests.support.grids import key_of, respoken, set_stage

NOW = datetime(2027, 1, 1, tzinfo=UTC)


def adapter_of_a_round(directory: Path, fault: Any, *, cap: int | None = None) -> bytes:
    stage = set_stage(directory, faults={1: fault})
    if cap is not None:
        members = {f"clinic-{number}": key_of(f"clinic-{number}").public for number in range(3)}
        (directory / MEMBERS_FILE).write_bytes(encode_members(members, max_examples=cap))
    conduct_rounds(stage.exchange, directory, SilentReporter())
    return (directory / ADAPTER_FILE).read_bytes()


@pytest.fixture(scope="module")
def without_the_attacker(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return adapter_of_a_round(tmp_path_factory.mktemp("honest"), lambda reply: None)


@pytest.mark.parametrize("num_examples", [0, -1, -800, 10**12, 2**53 - 1, "5", True, None, 1.5])
def test_s17_a_weight_that_cannot_be_true_is_refused(
    tmp_path: Path, without_the_attacker: bytes, num_examples: object
) -> None:
    fault = lambda reply: respoken(reply, num_examples=num_examples)  # noqa: E731 - one parameter of many
    assert adapter_of_a_round(tmp_path, fault) == without_the_attacker
    (record,) = read_rounds(tmp_path)
    assert [(who.client, who.reason) for who in record.rejected] == [("clinic-1", Reason.WEIGHT)]


def test_s17_a_weight_beyond_what_the_organisation_is_registered_for_is_refused(
    tmp_path: Path, without_the_attacker: bytes
) -> None:
    inflated = adapter_of_a_round(tmp_path, lambda reply: respoken(reply, num_examples=31), cap=30)
    assert inflated == without_the_attacker
    (record,) = read_rounds(tmp_path)
    assert [(who.client, who.reason) for who in record.rejected] == [("clinic-1", Reason.WEIGHT)]
