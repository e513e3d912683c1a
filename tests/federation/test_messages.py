import json

import pytest

from scaleot_core.adapters.spec import AdapterKind, AdapterSpec
from scaleot_core.errors import MalformedStatementError
from scaleot_core.federation.messages import (
    MAX_STATEMENT_BYTES,
    UNREAD_NONCE,
    Instructions,
    Refusal,
    UpdateStatement,
    decode_statement,
    encode_statement,
    nonce_of,
)
from tests.support.updates import expected_update, honest_statement


def instructions() -> Instructions:
    return Instructions(
        run="run-1",
        round=1,
        attempt=1,
        nonce="1" * 64,
        client="Klinik Süd",
        base_sha256="2" * 64,
        bundle_digest="3" * 64,
        adapter=AdapterSpec(AdapterKind.LORA, (6, 12), 8, seed=5, freezes_down=True),
        local_steps=20,
        batch_size=8,
        learning_rate=5e-4,
        optimizer="adamw",
        max_tokens=256,
        seed=2**53 - 1,
    )


def test_a_statement_reads_back_as_it_was_written() -> None:
    statement = instructions()
    assert decode_statement(encode_statement(statement), Instructions) == statement


def test_a_statement_of_another_kind_is_refused() -> None:
    encoded = encode_statement(instructions())
    with pytest.raises(MalformedStatementError) as refused:
        decode_statement(encoded, UpdateStatement)
    assert "type" in refused.value.fields


@pytest.mark.parametrize("field", ["run", "nonce", "num_examples", "train_loss", "update_sha256"])
def test_a_missing_field_is_refused_and_named(field: str) -> None:
    values = json.loads(encode_statement(honest_statement(expected_update(), b"")))
    del values[field]
    with pytest.raises(MalformedStatementError) as refused:
        decode_statement(json.dumps(values).encode(), UpdateStatement)
    assert refused.value.fields == (field,)


def test_an_unknown_field_is_refused() -> None:
    values = json.loads(encode_statement(Refusal(nonce="0" * 64, code="data")))
    with pytest.raises(MalformedStatementError):
        decode_statement(json.dumps({**values, "why": "text"}).encode(), Refusal)


def test_an_unknown_field_inside_the_adapter_is_refused() -> None:
    values = json.loads(encode_statement(instructions()))
    values["adapter"]["path"] = "/etc/passwd"
    with pytest.raises(MalformedStatementError):
        decode_statement(json.dumps(values, sort_keys=True, separators=(",", ":")).encode(), Instructions)


def test_a_duplicate_key_is_refused() -> None:
    encoded = encode_statement(Refusal(nonce="0" * 64, code="data"))
    doubled = encoded.replace(b'{"code":"data"', b'{"code":"x","code":"data"')
    assert doubled != encoded
    with pytest.raises(MalformedStatementError):
        decode_statement(doubled, Refusal)


def test_another_spelling_of_the_same_values_is_refused() -> None:
    encoded = encode_statement(Refusal(nonce="0" * 64, code="data"))
    with pytest.raises(MalformedStatementError):
        decode_statement(encoded.replace(b":", b": "), Refusal)


@pytest.mark.parametrize("encoded", [b"", b"null", b"[" * 5_000, b"\xff\xfe", b"{}", b'"text"', b"1e999"])
def test_nothing_but_our_error_comes_out_of_malformed_bytes(encoded: bytes) -> None:
    with pytest.raises(MalformedStatementError):
        decode_statement(encoded, UpdateStatement)


def test_a_statement_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(MalformedStatementError, match=str(MAX_STATEMENT_BYTES)):
        decode_statement(b" " * (MAX_STATEMENT_BYTES + 1), UpdateStatement)


def test_a_refusal_can_not_carry_a_text() -> None:
    with pytest.raises(ValueError, match="code"):
        Refusal(nonce="0" * 64, code="patient Meier has")


def test_the_nonce_of_a_statement_that_is_malformed_otherwise_is_found() -> None:
    assert nonce_of(b'{"nonce":"' + b"c" * 64 + b'","round":"no number"}') == "c" * 64
    assert nonce_of(b'{"nonce":"short"}') == UNREAD_NONCE
    assert nonce_of(b"no JSON") == UNREAD_NONCE
