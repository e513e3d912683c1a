"""Honest updates of a small adapter, and the safetensors blobs an attacker would write by hand."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch

from scaleot_core.bundle import generate_signing_key
from scaleot_core.bundle.envelope import sign_statement
from scaleot_core.federation.messages import UpdateStatement, digest_of
from scaleot_core.federation.signing import claimed, payload_type_of, sign
from scaleot_core.federation.validation import (
    AdapterUpdate,
    ExpectedUpdate,
    UnverifiedUpdate,
    bind_update,
    encode_tensors,
    validate_update,
)
from scaleot_core.shapes import TensorDict

SIGNER = generate_signing_key()
"""The client's key in these tests."""

SHAPES = {"1.q_proj.lora_A": (2, 8), "1.q_proj.lora_B": (8, 2)}


def random_state(seed: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def expected_update(base: TensorDict | None = None) -> ExpectedUpdate:
    base = base if base is not None else random_state(0)
    return ExpectedUpdate(
        run="run-1",
        round_number=3,
        attempt=1,
        nonce="a" * 64,
        client="clinic-a",
        signer=SIGNER.public,
        instructions_sha256="c" * 64,
        base=base,
        base_sha256=digest_of(encode_tensors(base)),
        bundle_digest="b" * 64,
        max_examples=1_000_000,
        max_update_norm=1_000.0,
    )


def honest_statement(expected: ExpectedUpdate, blob: bytes, **changes: Any) -> UpdateStatement:
    fields = {
        "run": expected.run,
        "round": expected.round_number,
        "attempt": expected.attempt,
        "nonce": expected.nonce,
        "client": expected.client,
        "base_sha256": expected.base_sha256,
        "bundle_digest": expected.bundle_digest,
        "instructions_sha256": expected.instructions_sha256,
        "update_sha256": digest_of(blob),
        "created": datetime(2027, 1, 1, tzinfo=UTC),
        "client_version": "1.0",
        "num_examples": 20,
        "train_loss": 1.5,
    }
    return UpdateStatement(**{**fields, **changes})


def update_of(expected: ExpectedUpdate, blob: bytes, **changes: Any) -> UnverifiedUpdate:
    envelope = sign(honest_statement(expected, blob, **changes), SIGNER)
    return UnverifiedUpdate(expected.client, envelope, blob)


def validated(update: UnverifiedUpdate, expected: ExpectedUpdate) -> AdapterUpdate:
    """Takes an update through all checks."""
    return validate_update(bind_update(update, expected), expected)


def with_field(update: UnverifiedUpdate, field: str, value_text: str) -> UnverifiedUpdate:
    """Writes any JSON text, right or wrong, in the place of one field of the statement, and signs it."""
    values = {name: json.dumps(value) for name, value in json.loads(claimed(update.envelope)).items()}
    values[field] = value_text
    text = ",".join(f'"{name}":{values[name]}' for name in sorted(values))
    signed = sign_statement(f"{{{text}}}".encode(), payload_type_of(update.envelope), SIGNER)
    return replace(update, envelope=signed)


def blob_with_header(header: dict[str, Any] | str, data: bytes, *, length: int | None = None) -> bytes:
    """Builds a safetensors blob by hand; a header given as text is taken as it is."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def header_of(shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, Any]:
    """The header an honest library would write for these shapes."""
    header, begin = {}, 0
    for name, shape in shapes.items():
        end = begin + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    return header
