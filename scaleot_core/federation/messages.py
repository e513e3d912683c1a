"""The statements that cross the wire, in canonical JSON (RFC 8785).

A message is a signed statement (``signing``) and, beside it, at most one adapter as a safetensors blob, which the
statement names by its digest. A statement is a few hundred bytes and all that a signature has to cover.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scaleot_core.adapters.spec import AdapterSpec
from scaleot_core.bundle.canonical import Instant, Sha256, canonical_json
from scaleot_core.bundle.grant import Organisation
from scaleot_core.bundle.public_keys import VerifyingKeyField
from scaleot_core.errors import MalformedStatementError

MAX_STATEMENT_BYTES = 16 * 1024
MAX_SEED = 2**53 - 1
"""The largest integer that canonical JSON can say."""

Nonce = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
RefusalCode = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]

MechanismName = Literal["dp-sgd", "dpzero", "lmo-dp", "update-gaussian"]
"""A mechanism of privacy; a row of ``privacy.mechanism.MECHANISMS``."""

UNREAD_NONCE = "0" * 64
"""What a refusal names when the request was too malformed to read its nonce."""

_STATEMENT = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Payload:
    """The bytes of one message. As received nothing of it is believed."""

    statement: bytes
    """In the envelope of its signatures."""
    tensors: bytes = b""
    certificate: bytes = b""
    """Of a request: by what right its signer speaks for the model owner."""
    receipts: tuple[bytes, ...] = ()
    """Of a request: what became of the client's updates so far."""

    @property
    def size_bytes(self) -> int:
        """All of it, without the transport's own framing."""
        return len(self.statement) + len(self.tensors) + len(self.certificate) + sum(map(len, self.receipts))


class IntroductionRequest(BaseModel):
    """The server asks a node whom it speaks for."""

    model_config = _STATEMENT
    type: Literal["scaleot.introduce/1"] = "scaleot.introduce/1"
    run: RunName
    nonce: Nonce


class Introduction(BaseModel):
    """A node says whom it speaks for."""

    model_config = _STATEMENT
    type: Literal["scaleot.introduction/1"] = "scaleot.introduction/1"
    run: RunName
    nonce: Nonce
    client: Organisation


class PrivacyRequest(BaseModel):
    """Which mechanism the server asks its clients to release through, in every round of the run.

    How much noise is none of its affair: each data owner calibrates it to its own budget.
    """

    model_config = _STATEMENT
    mechanism: MechanismName
    rounds: Annotated[int, Field(ge=1)]
    """Planned in all: a client's budget is laid out for so many."""
    max_grad_norm: Annotated[float, Field(ge=1e-9, le=1e9)]
    """The bound of what one example adds; for ``update-gaussian`` that of the whole update."""
    num_directions: Annotated[int, Field(ge=1, le=4096)]
    """K, of the mechanisms that send scalars."""
    smoothing: Annotated[float, Field(ge=1e-9, le=1e9)]
    """How far they move the adapter along a direction, lambda."""

    @property
    def sends_scalars(self) -> bool:
        """Whether an update holds a scalar for each step and direction, and no adapter."""
        return self.mechanism in ("dpzero", "lmo-dp")


class Instructions(BaseModel):
    """What the server asks of one client in one round. The global adapter goes with it.

    The bounds here are what makes sense at all; what a data owner allows is its own policy.
    """

    model_config = _STATEMENT
    type: Literal["scaleot.instructions/1"] = "scaleot.instructions/1"
    run: RunName
    round: Annotated[int, Field(ge=1)]
    attempt: Annotated[int, Field(ge=1)]
    """How often this client has been asked for this round, this time included."""
    nonce: Nonce
    client: Organisation
    base_sha256: Sha256
    """Of the global adapter's blob."""
    bundle_digest: Sha256
    adapter: AdapterSpec
    local_steps: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[float, Field(gt=0)]
    optimizer: Literal["adamw", "sgd"]
    max_tokens: Annotated[int, Field(ge=2)]
    """Longer examples are cut."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    """Of the run; a client derives its own stream from it by round and name."""
    privacy: PrivacyRequest | None = None
    """``None`` asks for updates as they are."""
    ledger_head: Sha256 | None = None
    """The last head of this client's ledger that the server has seen: an older copy of the ledger lacks that line."""

    @property
    def asked_work(self) -> "Instructions":
        """What is to be done, whichever attempt asks for it: the same for all attempts of a round."""
        return self.model_copy(update={"attempt": 1, "nonce": UNREAD_NONCE})


class PrivateRelease(BaseModel):
    """What a client says of the noise in its update."""

    model_config = _STATEMENT
    noise: Annotated[str, Field(pattern=r"^[a-z-]{1,32}$")]
    parameters: dict[Annotated[str, Field(pattern=r"^[a-z_]{1,32}$")], float]
    """Of the noise's law, relative to the bound of one example."""
    sample_rate: Annotated[float, Field(gt=0, le=1)]
    count: Annotated[int, Field(ge=1)]
    """Releases in this update."""
    ledger_head: Sha256
    """Of the data owner's ledger after the charge: an older copy of it would not have this line."""


class UpdateStatement(BaseModel):
    """What a client says about the update that goes with it."""

    model_config = _STATEMENT
    type: Literal["scaleot.update/1"] = "scaleot.update/1"
    run: RunName
    round: Annotated[int, Field(ge=1)]
    attempt: Annotated[int, Field(ge=1)]
    nonce: Nonce
    client: Organisation
    base_sha256: Sha256
    bundle_digest: Sha256
    instructions_sha256: Sha256
    """Of the statement that is answered: whatever was asked, this update is the answer to it and to nothing else."""
    update_sha256: Sha256
    """Of the update's blob."""
    created: Instant
    client_version: Annotated[str, Field(pattern=r"^[A-Za-z0-9.+-]{1,64}$")]
    num_examples: int
    """The weight of federated averaging: examples at hand, under a mechanism the declared number of records. Its range
    is the server's to check."""
    train_loss: Annotated[float, Field(ge=0)] | None
    """Mean over the local steps; none under a mechanism, where it would be a release of its own."""
    privacy: PrivateRelease | None = None
    """``None`` where nothing hides the records."""


class Refusal(BaseModel):
    """A client does not take part: a code, and never a text, since an error's text may quote private data."""

    model_config = _STATEMENT
    type: Literal["scaleot.refusal/1"] = "scaleot.refusal/1"
    nonce: Nonce
    code: RefusalCode


class RunCertificate(BaseModel):
    """The model owner lets a key speak for it in one run, with one bundle, until a day.

    The owner's own key opens every door: it signs bundles and grants. So it stays out of the server of the rounds,
    which has a key of its own for each run.
    """

    model_config = _STATEMENT
    type: Literal["scaleot.run-certificate/1"] = "scaleot.run-certificate/1"
    run: RunName
    bundle_digest: Sha256
    verifying_key: VerifyingKeyField
    """Of the server of the rounds."""
    not_after: Instant


class Receipt(BaseModel):
    """What became of a client's update: a code, and no number that could be asked again and again."""

    model_config = _STATEMENT
    type: Literal["scaleot.receipt/1"] = "scaleot.receipt/1"
    run: RunName
    round: Annotated[int, Field(ge=1)]
    client: Organisation
    status: Literal["accepted", "refused"]
    code: Annotated[str, Field(pattern=r"^[A-Z_]{1,32}$")] | None = None
    """Why it was refused, a ``Reason``."""
    is_retryable: bool = False
    """Whether the same update, or a repaired one, may count in a later round."""
    update_sha256: Sha256 | None = None
    """Of the blob that was received; none came with a refusal of the client's own."""
    audit_head: Sha256 | None = None
    """Of the server's audit log once the round was over: who compares it with other members' sees a forked log."""


StatementKind: TypeAlias = (
    IntroductionRequest | Introduction | Instructions | UpdateStatement | Refusal | RunCertificate | Receipt
)
Statement = TypeVar(
    "Statement", IntroductionRequest, Introduction, Instructions, UpdateStatement, Refusal, RunCertificate, Receipt
)


def encode_statement(statement: StatementKind) -> bytes:
    """Returns the one encoding of a statement."""
    return canonical_json(statement.model_dump(mode="json"))


def decode_statement(encoded: bytes, kind: type[Statement]) -> Statement:
    """Reads a statement of one kind; whatever does not encode back to the same bytes is refused.

    So a duplicate key, an unknown one, or a second spelling of a number has no way in.

    Raises:
        MalformedStatementError: the bytes are too many, no JSON, of another kind, or a field is missing, unknown, of
            another type or out of range. ``fields`` names the fields at fault.
    """
    if len(encoded) > MAX_STATEMENT_BYTES:
        raise MalformedStatementError((), f"at most {MAX_STATEMENT_BYTES} bytes", f"{len(encoded)} bytes")
    try:
        statement = kind.model_validate_json(encoded)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        fields = tuple(".".join(map(str, fault["loc"])) for fault in faults)
        raise MalformedStatementError(fields, kind.__name__, faults[0]["msg"]) from None
    if encode_statement(statement) != encoded:
        raise MalformedStatementError((), "canonical JSON (RFC 8785)", "another spelling of the same values")
    return statement


class _Addressed(BaseModel):
    model_config = ConfigDict(extra="ignore")
    nonce: Nonce


def nonce_of(encoded: bytes) -> str:
    """Returns the nonce of a request that may be malformed otherwise, so that its refusal can name it."""
    try:
        return _Addressed.model_validate_json(encoded[:MAX_STATEMENT_BYTES]).nonce
    except ValidationError:
        return UNREAD_NONCE


def digest_of(blob: bytes) -> str:
    """Returns the SHA-256 of an adapter's blob, in hex."""
    return hashlib.sha256(blob).hexdigest()
