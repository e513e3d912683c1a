import pytest

from fl_clients.refusal import refuse
from scaleot_core.errors import (
    DataError,
    InputError,
    InstructionsRefusedError,
    MalformedStatementError,
    MalformedTensorsError,
    ModelError,
    Reason,
    VerificationError,
)
from scaleot_core.federation.messages import Refusal, decode_statement


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InstructionsRefusedError("policy.local_steps", expected="a", got="b"), "policy.local_steps"),
        (VerificationError("bundle.signature", "secret"), "bundle.signature"),
        (MalformedStatementError((), "secret", "secret"), "instructions.malformed"),
        (MalformedTensorsError(Reason.SCHEMA, "secret", "secret"), "adapter.E_SCHEMA"),
        (DataError("secret"), "data"),
        (ModelError("secret"), "emulator"),
        (InputError("secret"), "own_files"),
        (MemoryError("secret"), "memory"),
        (RuntimeError("secret"), "internal"),
    ],
)
def test_every_error_has_a_code_and_no_text(error: Exception, code: str) -> None:
    payload = refuse(error, "a" * 64, hides_records=False)
    assert decode_statement(payload.statement, Refusal) == Refusal(nonce="a" * 64, code=code)
    assert b"secret" not in payload.statement
    assert payload.tensors == b""


@pytest.mark.parametrize("error", [DataError("secret"), MemoryError("secret"), RuntimeError("secret")])
def test_under_a_mechanism_one_code_stands_for_all_that_a_record_may_bring_about(error: Exception) -> None:
    payload = refuse(error, "a" * 64, hides_records=True)
    assert decode_statement(payload.statement, Refusal).code == "withheld"


def test_under_a_mechanism_what_no_record_brings_about_keeps_its_code() -> None:
    payload = refuse(ModelError("secret"), "a" * 64, hides_records=True)
    assert decode_statement(payload.statement, Refusal).code == "emulator"
