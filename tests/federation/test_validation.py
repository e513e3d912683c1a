import math
import time
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from scaleot_core.errors import MalformedTensorsError, Reason, UpdateRejectedError
from scaleot_core.federation.messages import digest_of
from scaleot_core.federation.validation import (
    AdapterSchema,
    UnverifiedUpdate,
    decode_tensors,
    encode_tensors,
)
from tests.support.updates import (
    SHAPES,
    blob_with_header,
    expected_update,
    header_of,
    honest_statement,
    random_state,
    update_of,
    validated,
    with_field,
)

SCHEMA = AdapterSchema(SHAPES)
HONEST = encode_tensors(random_state(1))
DATA = HONEST[-SCHEMA.data_bytes :]


def reason_of(update: UnverifiedUpdate) -> Reason:
    with pytest.raises(UpdateRejectedError) as rejected:
        validated(update, expected_update())
    assert rejected.value.client == "clinic-a"
    return rejected.value.reason


def test_an_honest_update_is_accepted_with_its_values_untouched() -> None:
    update = validated(update_of(expected_update(), HONEST), expected_update())
    assert (update.client, update.num_examples, update.train_loss) == ("clinic-a", 20, 1.5)
    assert all(torch.equal(update.state[name], tensor) for name, tensor in random_state(1).items())


@pytest.mark.parametrize(
    "count", ["0", "-1", "-800", "1000001", "1000000000000", "true", '"5"', "NaN", "1e3", "1.5", "null", "[5]", "1e999"]
)
def test_an_absurd_weight_is_refused_as_a_weight(count: str) -> None:
    assert reason_of(with_field(update_of(expected_update(), HONEST), "num_examples", count)) is Reason.WEIGHT


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("round", 2, Reason.STALE),
        ("run", "run-2", Reason.BINDING),
        ("nonce", "c" * 64, Reason.BINDING),
        ("client", "clinic-b", Reason.BINDING),
        ("base_sha256", "c" * 64, Reason.BINDING),
        ("bundle_digest", "c" * 64, Reason.BINDING),
        ("update_sha256", "c" * 64, Reason.DIGEST),
    ],
)
def test_an_update_for_anything_else_is_refused(field: str, value: Any, reason: Reason) -> None:
    assert reason_of(update_of(expected_update(), HONEST, **{field: value})) is reason


@pytest.mark.parametrize("loss", ["NaN", "-1", '"1.5"', "Infinity"])
def test_an_absurd_loss_is_refused(loss: str) -> None:
    assert reason_of(with_field(update_of(expected_update(), HONEST), "train_loss", loss)) is Reason.FORMAT


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused(value: float) -> None:
    state = random_state(1)
    state["1.q_proj.lora_B"][7, 1] = value
    assert reason_of(update_of(expected_update(), encode_tensors(state))) is Reason.NONFINITE


@pytest.mark.parametrize("scale", [1e30, 3e38, 1e4])
def test_a_step_of_absurd_length_is_refused(scale: float) -> None:
    state = {name: torch.full(shape, scale) for name, shape in SHAPES.items()}
    assert reason_of(update_of(expected_update(), encode_tensors(state))) is Reason.NORM


def test_the_norm_is_that_of_the_step_and_not_of_the_adapter() -> None:
    base = {"1.weight": torch.full((2, 8), 1e6)}
    expected = expected_update(base)
    state = {name: tensor + 1 for name, tensor in base.items()}
    validated(update_of(expected, encode_tensors(state)), expected)


def test_s15_factors_within_the_bound_whose_product_is_beyond_it_are_refused() -> None:
    state = {"1.q_proj.lora_A": torch.full((2, 8), 100.0), "1.q_proj.lora_B": torch.full((8, 2), 100.0)}
    assert float(torch.cat([one.flatten() for one in state.values()]).norm()) < 1_000
    assert reason_of(update_of(expected_update(), encode_tensors(state))) is Reason.NORM


def test_denormals_and_negative_zero_are_fine() -> None:
    state = {name: torch.full(shape, 1e-42) for name, shape in SHAPES.items()}
    state["1.q_proj.lora_A"].fill_(-0.0)
    validated(update_of(expected_update(), encode_tensors(state)), expected_update())


def _tensors(**changes: Any) -> bytes:
    return save({**random_state(1), **changes})


def _with_entry(name: str, shape: list[Any], offsets: list[Any], *, data: bytes = DATA) -> bytes:
    entry = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
    return blob_with_header({**header_of(), f"1.q_proj.{name}": entry}, data)


BAD_CONTAINERS: dict[str, tuple[bytes, Reason]] = {
    "empty": (b"", Reason.SIZE),
    "cut by one byte": (HONEST[:-1], Reason.SCHEMA),
    "cut to a few bytes": (HONEST[:9], Reason.SIZE),
    "one byte more": (HONEST + b"\0", Reason.SCHEMA),
    "wrong shape": (_tensors(**{"1.q_proj.lora_B": torch.zeros(2, 8)}), Reason.SCHEMA),
    "broadcast shape": (_tensors(**{"1.q_proj.lora_B": torch.zeros(1, 1)}), Reason.SCHEMA),
    "half precision": (_tensors(**{"1.q_proj.lora_B": torch.zeros(8, 2).half()}), Reason.SCHEMA),
    "integers": (_tensors(**{"1.q_proj.lora_B": torch.zeros(8, 2).int()}), Reason.SCHEMA),
    "missing tensor": (save({"1.q_proj.lora_A": torch.zeros(2, 8)}), Reason.SCHEMA),
    "extra tensor": (_tensors(more=torch.zeros(1)), Reason.SCHEMA),
    "extra empty tensor": (_tensors(more=torch.zeros(0)), Reason.SCHEMA),
    "metadata": (save(random_state(1), metadata={"a": "b"}), Reason.SCHEMA),
    "duplicate key": (
        blob_with_header(
            '{"1.q_proj.lora_A":{"dtype":"F32","shape":[2,8],"data_offsets":[0,64]},'
            '"1.q_proj.lora_A":{"dtype":"F32","shape":[2,8],"data_offsets":[0,64]},'
            '"1.q_proj.lora_B":{"dtype":"F32","shape":[8,2],"data_offsets":[64,128]}}',
            DATA,
        ),
        Reason.SCHEMA,
    ),
    "duplicate inner key": (
        blob_with_header(
            '{"1.q_proj.lora_A":{"dtype":"F64","dtype":"F32","shape":[2,8],"data_offsets":[0,64]},'
            '"1.q_proj.lora_B":{"dtype":"F32","shape":[8,2],"data_offsets":[64,128]}}',
            DATA,
        ),
        Reason.SCHEMA,
    ),
    "deep header": (blob_with_header("[" * 800, DATA), Reason.SCHEMA),
    "header is a list": (blob_with_header("[]", DATA), Reason.SCHEMA),
    "header is no JSON": (blob_with_header("\\", DATA), Reason.SCHEMA),
    "huge number": (blob_with_header('{"a":' + "9" * 600 + "}", DATA), Reason.SCHEMA),
    "header length 2^63": (blob_with_header(header_of(), DATA, length=2**63), Reason.SCHEMA),
    "header length 0": (blob_with_header(header_of(), DATA, length=0), Reason.SCHEMA),
    "fractional shape": (_with_entry("lora_A", [2.0, 8.0], [0, 64]), Reason.SCHEMA),
    "boolean shape": (_with_entry("lora_A", [True, 16], [0, 64]), Reason.SCHEMA),
    "entry is a list": (blob_with_header({**header_of(), "1.q_proj.lora_A": []}, DATA), Reason.SCHEMA),
    "offsets reversed": (_with_entry("lora_A", [2, 8], [64, 0]), Reason.SCHEMA),
    "offsets as booleans": (_with_entry("lora_A", [2, 8], [False, 64]), Reason.SCHEMA),
    "overlap": (_with_entry("lora_B", [8, 2], [0, 64]), Reason.SCHEMA),
    "hole": (_with_entry("lora_B", [8, 2], [68, 132], data=DATA + b"\0" * 4), Reason.SCHEMA),
    "overflowing offsets": (_with_entry("lora_B", [8, 2], [2**64, 2**64 + 64]), Reason.SCHEMA),
    "extra key in an entry": (
        blob_with_header({**header_of(), "1.q_proj.lora_A": {**header_of()["1.q_proj.lora_A"], "x": 1}}, DATA),
        Reason.SCHEMA,
    ),
}


@pytest.mark.parametrize("name", BAD_CONTAINERS)
def test_a_container_that_is_not_the_schemas_is_refused(name: str) -> None:
    blob, reason = BAD_CONTAINERS[name]
    assert reason_of(update_of(expected_update(), blob)) is reason


def test_a_header_bomb_is_refused_before_it_is_digested_or_parsed() -> None:
    bomb = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_000)}
    blob = blob_with_header({**header_of(), **bomb}, DATA)
    update = update_of(expected_update(), blob, update_sha256="c" * 64)
    tracemalloc.start()
    started = time.thread_time()
    reason = reason_of(update)
    cpu_seconds, peak_bytes = time.thread_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reason is Reason.SIZE
    assert cpu_seconds < 0.05
    assert peak_bytes < 1024 * 1024


def test_equal_states_have_equal_blobs_whatever_the_order_of_their_names() -> None:
    state = random_state(1)
    assert encode_tensors(state) == encode_tensors(dict(reversed(state.items())))


def test_tensors_survive_the_wire_bit_for_bit() -> None:
    state = random_state(1)
    back = decode_tensors(encode_tensors(state), AdapterSchema.of(state))
    assert list(back) == sorted(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(HONEST) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_whatever_bytes_change_only_our_error_comes_out_and_never_another_meaning(edits: list[tuple[int, int]]) -> None:
    blob = bytearray(HONEST)
    for position, value in edits:
        blob[position] = value
    try:
        state = decode_tensors(bytes(blob), SCHEMA)
    except MalformedTensorsError:
        return
    library = load(bytes(blob))
    assert library.keys() == state.keys()
    assert all(torch.equal(library[name], state[name]) and state[name].isfinite().all() for name in state)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_random_statements_raise_nothing_but_a_rejection(statement: bytes) -> None:
    update = replace(update_of(expected_update(), HONEST), envelope=statement)
    assert reason_of(update) is Reason.SIGNATURE


def test_a_statement_with_trailing_bytes_is_refused() -> None:
    update = update_of(expected_update(), HONEST)
    assert reason_of(replace(update, envelope=update.envelope + b" ")) is Reason.SIGNATURE


def test_the_digest_covers_the_whole_blob() -> None:
    envelope = update_of(expected_update(), HONEST).envelope
    other = bytearray(HONEST)
    other[-1] ^= 1
    assert reason_of(UnverifiedUpdate("clinic-a", envelope, bytes(other))) is Reason.DIGEST
    assert honest_statement(expected_update(), HONEST).update_sha256 == digest_of(HONEST)
