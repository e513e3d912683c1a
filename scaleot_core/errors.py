"""Every error this project raises on purpose: what was expected, what came, where, and what to do.

The exit code of the command line stands on the class: 1 our own failure, 2 wrong usage or input, 3 not verified,
4 privacy budget exhausted.
"""

from enum import StrEnum
from typing import ClassVar

from scaleot_core.figures import counted_rounds, no_less, no_more


class ScaleOTError(Exception):
    """The base of all our errors; the command line prints its message and leaves with its ``exit_code``."""

    exit_code: ClassVar[int] = 1


class InputError(ScaleOTError):
    """Something the user gave cannot be used; nothing was written."""

    exit_code = 2


class RunFileError(InputError):
    """A run file has faults; all of them are reported together."""

    def __init__(self, source: str, faults: tuple[str, ...]) -> None:
        self.faults = faults
        listed = "\n".join(f"  - {fault}" for fault in faults)
        super().__init__(f"{source} has {len(faults)} fault{'s' if len(faults) > 1 else ''}:\n{listed}")


class ModelError(InputError):
    """A model cannot be loaded, is of an unknown family, or does not fit the plan asked for."""


class DataError(InputError):
    """A data file is missing, empty or malformed; the message names file and line."""


class OutputError(InputError):
    """The output directory cannot be written."""


class AssetError(ScaleOTError):
    """An embedded asset could not be fetched, or what was fetched has another digest."""


class VerificationError(ScaleOTError):
    """A bundle, grant or key is not what its signer made; nothing of it was used.

    ``code`` is stable and names the failed check, for example ``bundle.signature``.
    """

    exit_code = 3

    def __init__(self, code: str, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(f"{message} [{code}]")


class FetchError(ScaleOTError):
    """A sealed bundle could not be fetched; what came of it is kept, and the next fetch goes on from there."""


class SourceInterruptedError(FetchError):
    """A source of sealed bundles failed in a way that may pass: it is asked again until the fetch's deadline."""


class NotServedError(FetchError):
    """A source answers, and has no such file."""


class BrokenLineError(ScaleOTError):
    """A line of an append-only record is not what was written there; who reads the record adds its name and number."""

    exit_code = 3


class ChainError(ScaleOTError):
    """An append-only record, as the registry of organisations or the audit log, cannot be believed.

    ``line`` is the number of the line at fault, counted from 1, or ``None`` where the fault lies in no line.
    """

    exit_code = 3

    def __init__(self, source: str, fault: str, *, line: int | None = None) -> None:
        self.line = line
        at = "" if line is None else f", line {line}"
        super().__init__(f"{source}{at}: {fault}")


class LedgerError(ScaleOTError):
    """A data owner's privacy ledger cannot be believed, or is not the one asked for; nothing was released.

    ``line`` is the number of the line at fault, counted from 1, or ``None`` where the fault lies in no line.
    """

    exit_code = 3

    def __init__(self, source: str, fault: str, *, line: int | None = None) -> None:
        self.line = line
        at = "" if line is None else f", line {line}"
        super().__init__(f"privacy ledger {source}{at}: {fault}")


class StoreError(ScaleOTError):
    """The durable state of the rounds cannot be believed; nothing was made of it."""

    exit_code = 3

    def __init__(self, source: str, fault: str) -> None:
        super().__init__(f"{source}: {fault}. Put back a copy of the run's directory, or make the run anew")


class BudgetExhaustedError(ScaleOTError):
    """Releases asked for would pass a data owner's privacy budget; nothing was released and nothing is charged.

    All figures but the last are epsilon, and ``about`` says at which delta and of what (``units.PrivacyScope``).
    ``asked`` is what the releases would cost alone, and ``total`` what they would bring ``spent`` to: less than the sum
    of both, since privacy losses compose sublinearly. ``rounds_that_fit`` is how many such rounds still fit in the
    budget.
    """

    exit_code = 4

    def __init__(
        self,
        *,
        spent: float,
        asked: float,
        total: float,
        budget: float,
        about: str,
        rounds_that_fit: int,
    ) -> None:
        self.spent, self.asked, self.total, self.budget = spent, asked, total, budget
        self.rounds_that_fit = rounds_that_fit
        left = no_more(max(budget - spent, 0.0), digits=6)
        super().__init__(
            f"privacy budget exhausted: of epsilon {budget:g} {about}, {no_less(spent, digits=6)} is spent "
            f"and {left} left; what is asked costs {no_less(asked, digits=6)} alone and would bring the total to "
            f"{no_less(total, digits=6)}. Rounds of this kind that still fit: {counted_rounds(rounds_that_fit)}"
        )


class Reason(StrEnum):
    """Why the server refused a client's update; the codes are stable."""

    ERROR = "E_CLIENT"
    FORMAT = "E_FORMAT"
    BINDING = "E_BINDING"
    STALE = "E_STALE"
    SIZE = "E_SIZE"
    DIGEST = "E_DIGEST"
    SCHEMA = "E_SCHEMA"
    NONFINITE = "E_NONFINITE"
    NORM = "E_NORM"
    WEIGHT = "E_WEIGHT"
    TIMEOUT = "E_TIMEOUT"
    PRIVACY = "E_PRIVACY"
    LEDGER = "E_LEDGER"
    SIGNATURE = "E_SIGNATURE"
    REVOKED = "E_REVOKED"
    EQUIVOCATION = "E_EQUIVOCATION"
    CANARY = "R_CANARY"


class MalformedStatementError(ScaleOTError):
    """A statement of the federation is not what its kind says; ``fields`` names the fields at fault."""

    def __init__(self, fields: tuple[str, ...], expected: str, got: str) -> None:
        self.fields, self.expected, self.got = fields, expected, got
        at = f" at {', '.join(fields)}" if fields else ""
        super().__init__(f"malformed statement{at}: expected {expected}, got {got}")


class MalformedTensorsError(ScaleOTError):
    """An adapter's blob is not what its schema says."""

    def __init__(self, reason: Reason, expected: str, got: str) -> None:
        self.reason, self.expected, self.got = reason, expected, got
        super().__init__(f"malformed tensors [{reason}]: expected {expected}, got {got}")


class InstructionsRefusedError(ScaleOTError):
    """A data owner does not follow the server's instructions; ``code`` is stable and all that the server is told."""

    def __init__(self, code: str, *, expected: str, got: str) -> None:
        self.code, self.expected, self.got = code, expected, got
        super().__init__(f"instructions refused [{code}]: expected {expected}, got {got}")


class EngineError(ScaleOTError):
    """Flower's engine stopped before the rounds were done; the message quotes the end of its log."""


class UpdateRejectedError(ScaleOTError):
    """A client's update was refused; the round goes on without it."""

    def __init__(self, reason: Reason, *, client: str, expected: str, got: str) -> None:
        self.reason, self.client, self.expected, self.got = reason, client, expected, got
        super().__init__(f"update of client {client} refused [{reason}]: expected {expected}, got {got}")


class RoundFailedError(ScaleOTError):
    """A round ended with too few accepted updates; the adapter of the round before stands."""
