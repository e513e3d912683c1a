import pytest

from fl_clients.refusal import refuse
from scaleot_core.errors import (
    DataError,
    InputError,
    InstructionsRefusedError,
    MalformedStatementError,
    MalformedTensorsError,
    ModelError,
    OutputError,
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
        (OutputError("secret"), "own_disk"),
        (InputError("secret"), "own_files"),
        (MemoryError("secret"), "memory"),
        (RuntimeError("secret"), "internal"),
    ],
)
def test_every_error_has_a_code_and_no_text(error: Exception, code: str) -> None:
    payload = refuse(error, "a" * 64, None)
    assert decode_statement(payload.statement, Refusal) == Refusal(nonce="a" * 64, code=code)
    assert b"secret" not in payload.statement
    assert payload.tensors == b""
