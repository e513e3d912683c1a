"""What a client says when it does not take part: one stable code."""

import os
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from fl_clients.policy import hides_records, read_data_owner_file
from scaleot_core.bundle import load_signing_key
from scaleot_core.errors import (
    BudgetExhaustedError,
    DataError,
    InputError,
    InstructionsRefusedError,
    LedgerError,
    MalformedStatementError,
    MalformedTensorsError,
    ModelError,
    OutputError,
    VerificationError,
)
from scaleot_core.federation.messages import Payload, Refusal, encode_statement
from scaleot_core.federation.signing import sign
from scaleot_core.out_of_memory import is_out_of_memory

FAILURE_LOG = "failure.log"

_CODES: tuple[tuple[type[BaseException], str], ...] = (
    (MalformedStatementError, "instructions.malformed"),
    (BudgetExhaustedError, "privacy.budget"),
    (LedgerError, "privacy.ledger"),
    (DataError, "data"),
    (ModelError, "emulator"),
    (OutputError, "own_disk"),
    (InputError, "own_files"),
)
"""The first row that fits; an error of no row is a fault of ours or of the machine, and is called ``internal``."""


WITHHELD = "withheld"
_TELLING_CODES = ("data", "memory", "internal")
"""Those that one record can bring about: under a mechanism which of them it was would tell more of it."""


def refuse(error: BaseException, nonce: str, directory: Path | None) -> Payload:
    """Returns the refusal of the request with this nonce: the error's code, and none of its text.

    Where the data owner hides its records behind a mechanism, one code stands for all that a record may bring about.
    Signed by the data owner whose directory this is. Without a key that can be read it goes unsigned: the server
    believes it of nobody, and learns at least that the client is there and does not know itself.
    """
    code = _code(error)
    if code in _TELLING_CODES and (directory is None or hides_records(directory)):
        code = WITHHELD
    refusal = Refusal(nonce=nonce, code=code)
    try:
        if directory is not None:
            return Payload(sign(refusal, load_signing_key(read_data_owner_file(directory).signing_key)))
    except Exception:  # noqa: BLE001, S110 - whatever a broken key or file raises here must not leave as text either
        pass
    return Payload(encode_statement(refusal))


def log_failure(error: BaseException, directory: Path) -> None:
    """Appends the whole error to the data owner's own log, which nobody else may read.

    A directory that is missing or full loses the entry: a failure to write it must not reach the server either.
    """
    text = f"{datetime.now(UTC).isoformat(timespec='seconds')}\n{''.join(traceback.format_exception(error))}\n"
    with suppress(OSError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        with os.fdopen(os.open(directory / FAILURE_LOG, flags, 0o600), "a", encoding="utf-8") as file:
            file.write(text)


def _code(error: BaseException) -> str:
    if isinstance(error, InstructionsRefusedError | VerificationError):
        return error.code
    if isinstance(error, MalformedTensorsError):
        return f"adapter.{error.reason}"
    if is_out_of_memory(error):
        return "memory"
    return next((code for kind, code in _CODES if isinstance(error, kind)), "internal")
