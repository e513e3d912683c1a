"""What a client says when it does not take part: one stable code."""

import os
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from scaleot_core.errors import (
    BudgetExhaustedError,
    DataError,
    InputError,
    InstructionsRefusedError,
    LedgerError,
    MalformedStatementError,
    MalformedTensorsError,
    ModelError,
    VerificationError,
)
from scaleot_core.federation.messages import Payload, Refusal, encode_statement

FAILURE_LOG = "failure.log"

_CODES: tuple[tuple[type[BaseException], str], ...] = (
    (MalformedStatementError, "instructions.malformed"),
    (BudgetExhaustedError, "privacy.budget"),
    (LedgerError, "privacy.ledger"),
    (DataError, "data"),
    (ModelError, "emulator"),
    (InputError, "own_files"),
    (MemoryError, "memory"),
)
"""The first row that fits; an error of no row is a fault of ours or of the machine, and is called ``internal``."""


WITHHELD = "withheld"
_TELLING_CODES = ("data", "memory", "internal")
"""Those that one record can bring about: under a mechanism which of them it was would tell more of it."""


def refuse(error: BaseException, nonce: str, *, hides_records: bool) -> Payload:
    """Returns the refusal of the request with this nonce: the error's code, and none of its text.

    Where the data owner ``hides_records`` behind a mechanism, one code stands for all that a record may bring about.
    """
    code = _code(error)
    if hides_records and code in _TELLING_CODES:
        code = WITHHELD
    return Payload(encode_statement(Refusal(nonce=nonce, code=code)))


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
    return next((code for kind, code in _CODES if isinstance(error, kind)), "internal")
