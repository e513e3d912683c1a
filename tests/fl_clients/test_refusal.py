from pathlib import Path

import pytest
import torch

from fl_clients.policy import DATA_OWNER_FILE
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

PRIVACY = "[privacy]\nepsilon = 1.0\ndelta = 1e-5\nmechanisms = ['dp-sgd']\ndeclared_records = 9\n"


def owner(directory: Path, privacy: str = "") -> Path:
    """Returns the directory of a data owner without a key: its refusals are not signed."""
    text = f'organisation = "clinic"\ndata = "train.jsonl"\n{privacy}'
    (directory / DATA_OWNER_FILE).write_text(text, encoding="utf-8")
    return directory


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
        (torch.OutOfMemoryError("CUDA out of memory. secret"), "memory"),
        (RuntimeError("secret"), "internal"),
    ],
)
def test_every_error_has_a_code_and_no_text(tmp_path: Path, error: Exception, code: str) -> None:
    payload = refuse(error, "a" * 64, owner(tmp_path))
    assert decode_statement(payload.statement, Refusal) == Refusal(nonce="a" * 64, code=code)
    assert b"secret" not in payload.statement
    assert payload.tensors == b""


@pytest.mark.parametrize("error", [DataError("secret"), MemoryError("secret"), RuntimeError("secret")])
def test_under_a_mechanism_one_code_stands_for_all_that_a_record_may_bring_about(
    tmp_path: Path, error: Exception
) -> None:
    payload = refuse(error, "a" * 64, owner(tmp_path, PRIVACY))
    assert decode_statement(payload.statement, Refusal).code == "withheld"


def test_under_a_mechanism_what_no_record_brings_about_keeps_its_code(tmp_path: Path) -> None:
    payload = refuse(ModelError("secret"), "a" * 64, owner(tmp_path, PRIVACY))
    assert decode_statement(payload.statement, Refusal).code == "emulator"


def test_a_data_owner_that_is_not_known_is_taken_to_hide_its_records() -> None:
    assert decode_statement(refuse(DataError("secret"), "a" * 64, None).statement, Refusal).code == "withheld"
