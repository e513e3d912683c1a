"""Acceptance case F06, the rounds' part: the disk is full in the middle of a run. Nothing that was said is lost."""

import os
import resource
from pathlib import Path

import pytest

from scaleot_core.errors import OutputError
from tests.support.grids import set_stage
from tests.support.round_lives import check_the_end, check_what_was_said, live, run

STOPPED = 7


def live_with_little_room(directory: Path, said: Path, size_bytes: int) -> None:
    """Lives where no file may be larger, which is how a disk that fills up looks without being root."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))
    try:
        live(directory, said)
    except OutputError as error:
        os._exit(STOPPED if "make room" in str(error) or "cannot be written" in str(error) else 1)


@pytest.mark.parametrize("size_bytes", [8_000, 70_000, 90_000, 120_000, 200_000])
def test_f06_a_server_without_room_stops_and_goes_on_where_there_is_some(tmp_path: Path, size_bytes: int) -> None:
    full, roomy = tmp_path / "full", tmp_path / "roomy"
    for directory in (full, roomy):
        directory.mkdir()
        set_stage(directory, clients=3, rounds=3)
    assert run(live, roomy, roomy / "said") == 0
    assert run(live_with_little_room, full, full / "said", size_bytes) == STOPPED
    if (full / "said").exists():
        check_what_was_said(full, full / "said")
    assert run(live, full, full / "said") == 0
    check_the_end(full, full / "said", (roomy / "adapter.safetensors").read_bytes())
