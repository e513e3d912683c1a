"""Acceptance case S16: hostile containers, refused in less than 50 ms of work and 8 MiB of memory each."""

import json
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from fl_server.owner import read_rounds
from fl_server.rounds import conduct_rounds
from scaleot_core.errors import Reason, UpdateRejectedError
from scaleot_core.federation.messages import digest_of
from scaleot_core.federation.validation import bind_update, validate_update
from scaleot_core.progress import SilentReporter
from tests.support.grids import respoken, set_stage
from tests.support.updates import SHAPES, blob_with_header, expected_update, header_of, random_state, update_of

DATA = b"\0" * 128
ENTRY = '{"dtype":"F32","shape":[2,8],"data_offsets":[0,64]}'
OTHER = '{"dtype":"F32","shape":[8,2],"data_offsets":[64,128]}'
DOWN, UP = SHAPES


def moved(offsets: list[int]) -> dict[str, object]:
    header = header_of()
    header[UP]["data_offsets"] = offsets
    return header


def a_million_tensors() -> bytes:
    bomb = {f"t{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(1_000_000)}
    return blob_with_header({**header_of(), **bomb}, DATA)


BOMBS = {
    "wrong keys": lambda: save({"x": torch.zeros(2, 8), "y": torch.zeros(8, 2)}),
    "an extra key": lambda: save({**random_state(1), "2.x": torch.zeros(1)}),
    "a missing key": lambda: save({DOWN: torch.zeros(2, 8)}),
    "half precision": lambda: save({name: tensor.half() for name, tensor in random_state(1).items()}),
    "double precision": lambda: save({name: tensor.double() for name, tensor in random_state(1).items()}),
    "a broadcast shape": lambda: save({DOWN: torch.zeros(1, 1), UP: torch.zeros(8, 2)}),
    "a transposed shape": lambda: save({DOWN: torch.zeros(8, 2), UP: torch.zeros(8, 2)}),
    "duplicate JSON keys": lambda: blob_with_header(f'{{"{DOWN}":{ENTRY},"{DOWN}":{ENTRY},"{UP}":{OTHER}}}', DATA),
    "a million tensors": a_million_tensors,
    "a header of 2^63 bytes": lambda: blob_with_header(header_of(), DATA, length=2**63),
    "a header of 2^64 - 1 bytes": lambda: blob_with_header(header_of(), DATA, length=2**64 - 1),
    "overlapping tensors": lambda: blob_with_header(moved([0, 64]), DATA),
    "a hole": lambda: blob_with_header(moved([128, 192]), DATA + b"\0" * 64),
    "a shape of 2^62": lambda: blob_with_header(json.dumps(header_of()).replace("[8, 2]", f"[{2**62}, 2]"), DATA),
    "deep nesting": lambda: blob_with_header("[" * 300 + "]" * 300, DATA),
    "an empty blob": lambda: b"",
    "metadata of its own": lambda: save(random_state(1), metadata={"x": "y"}),
}


@pytest.mark.parametrize("name", BOMBS)
def test_s16_a_shape_bomb_is_refused_at_once_and_in_little_memory(name: str) -> None:
    blob, expected = BOMBS[name](), expected_update()
    bound = bind_update(update_of(expected, blob), expected)
    tracemalloc.start()
    started = time.thread_time()
    with pytest.raises(UpdateRejectedError) as refused:
        validate_update(bound, expected)
    seconds, (_, peak_bytes) = time.thread_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused.value.reason in (Reason.SCHEMA, Reason.SIZE)
    assert peak_bytes < 8 * 1024 * 1024
    assert seconds < 0.05


@pytest.mark.parametrize("name", ["a million tensors", "duplicate JSON keys", "a broadcast shape"])
def test_s16_a_round_goes_on_without_the_bomb(tmp_path: Path, name: str) -> None:
    blob = BOMBS[name]()
    stage = set_stage(tmp_path, faults={1: lambda reply: respoken(reply, blob=blob, update_sha256=digest_of(blob))})
    conduct_rounds(stage.exchange, tmp_path, SilentReporter())
    (record,) = read_rounds(tmp_path)
    assert record.clients == ("clinic-0", "clinic-2")
    assert {who.reason for who in record.rejected} <= {Reason.SCHEMA, Reason.SIZE} and record.rejected
