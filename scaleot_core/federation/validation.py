"""What the server believes of an update, and both sides of an adapter's tensors: cheap checks first, one reason each.

The tensors come as one safetensors blob. Its header is read here before the library sees it, because the library takes
duplicate keys without a word and spends seconds and gigabytes on a header of a million empty tensors. Offsets are left
to the library, which refuses overlaps, holes and overflows.
"""

import json
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from scaleot_core.bundle.keys import VerifyingKey
from scaleot_core.errors import (
    MalformedStatementError,
    MalformedTensorsError,
    Reason,
    UpdateRejectedError,
    VerificationError,
)
from scaleot_core.federation.messages import PrivateRelease, UpdateStatement, digest_of
from scaleot_core.federation.product import product_step_norm
from scaleot_core.federation.signing import open_signed
from scaleot_core.shapes import TensorDict

SCALARS = "scalars"
"""The one tensor of an update that holds scalars."""

_LENGTH_BYTES = 8
_NUMBER_BYTES = 4
_ENTRY_OVERHEAD_BYTES = 256
"""More than safetensors needs for one entry besides its name: dtype, four dimensions, two offsets, punctuation."""


@dataclass(frozen=True)
class AdapterSchema:
    """The names and shapes of an update's tensors, all of one type: an adapter's, or the scalars that move one."""

    shapes: dict[str, tuple[int, ...]]
    dtype: Literal["F32", "I32"] = "F32"
    """As safetensors names it."""

    @classmethod
    def of(cls, state: TensorDict) -> "AdapterSchema":
        """Returns the schema of a state."""
        return cls({name: tuple(tensor.shape) for name, tensor in state.items()})

    @classmethod
    def of_scalars(cls, steps: int, directions: int) -> "AdapterSchema":
        """Returns the schema of a round's scalars: ``scalars``, (steps, directions), in whole cells of a lattice."""
        return cls({SCALARS: (steps, directions)}, "I32")

    @property
    def data_bytes(self) -> int:
        """The tensors' own bytes."""
        return sum(_NUMBER_BYTES * math.prod(shape) for shape in self.shapes.values())

    @property
    def max_header_bytes(self) -> int:
        """A bound on an honest header."""
        return sum(len(json.dumps(name)) + _ENTRY_OVERHEAD_BYTES for name in self.shapes) + _ENTRY_OVERHEAD_BYTES


@dataclass(frozen=True)
class ExpectedScalars:
    """What stands in an update that holds scalars for public directions and no adapter."""

    steps: int
    directions: int
    unit_norm: float
    """How far a Euclidean norm of 1 of all scalars together moves the adapter: directions hardly overlap."""


@dataclass(frozen=True)
class UnverifiedUpdate:
    """What came back from the node of one client; nothing of it is believed."""

    client: str
    """Whom the server asked, by its own books."""
    envelope: bytes
    """A signed ``UpdateStatement``, if it is what it should be."""
    tensors: bytes


@dataclass(frozen=True)
class BoundUpdate:
    """An update whose statement the client has signed for this very request; only ``bind_update`` makes one."""

    statement: UpdateStatement
    tensors: bytes
    """Not looked at."""


@dataclass(frozen=True)
class ExpectedUpdate:
    """What an update must be bound to, and the bounds it must keep."""

    run: str
    round_number: int
    attempt: int
    nonce: str
    client: str
    signer: VerifyingKey
    """The client's, as the server knows it from elsewhere."""
    instructions_sha256: str
    base: TensorDict
    """The global adapter of the round."""
    base_sha256: str
    bundle_digest: str
    max_examples: int
    max_update_norm: float
    is_private: bool = False
    """Whether a mechanism was asked for."""
    scalars: ExpectedScalars | None = None
    """``None`` where the update is the adapter itself."""


@dataclass(frozen=True)
class AdapterUpdate:
    """A client's update after every check; only ``validate_update`` makes one."""

    client: str
    num_examples: int
    train_loss: float | None
    """None under a mechanism of privacy."""
    state: TensorDict
    """The adapter, or ``scalars``, int32 (steps, directions), where those were expected."""
    privacy: PrivateRelease | None = None


def bind_update(update: UnverifiedUpdate, expected: ExpectedUpdate) -> BoundUpdate:
    """Checks signature, form and binding of an update, in this order: whose it is, and that it answers this request.

    Raises:
        UpdateRejectedError: with the reason of the first check that failed. None of them is proof against the client:
            what it signed for another request anybody may have kept and sent again.
    """
    try:
        statement = open_signed(update.envelope, UpdateStatement, expected.signer)
    except VerificationError as error:
        raise UpdateRejectedError(
            Reason.SIGNATURE, client=update.client, expected="the signature of its organisation", got=error.code
        ) from error
    except MalformedStatementError as error:
        reason = Reason.WEIGHT if "num_examples" in error.fields else Reason.FORMAT
        raise UpdateRejectedError(reason, client=update.client, expected=error.expected, got=error.got) from error
    _check_binding(statement, expected)
    return BoundUpdate(statement, update.tensors)


def validate_update(update: BoundUpdate, expected: ExpectedUpdate) -> AdapterUpdate:
    """Checks privacy, weight, size, digest, container and values of an update, in this order.

    Raises:
        UpdateRejectedError: with the reason of the first check that failed.
    """
    statement = update.statement
    _check_privacy(statement, expected)
    _check_weight(statement, expected)
    state = _read_state(update.tensors, statement, expected)
    _check_norm(state, expected)
    return AdapterUpdate(expected.client, statement.num_examples, statement.train_loss, state, statement.privacy)


def encode_tensors(state: TensorDict) -> bytes:
    """Returns a state as a safetensors blob; equal states give equal bytes."""
    return save({name: tensor.contiguous() for name, tensor in state.items()})


def decode_tensors(blob: bytes, schema: AdapterSchema) -> TensorDict:
    """Reads a blob that holds exactly the schema's tensors, all values finite.

    Work and memory before the first refusal stay within a few times the schema's own size, whatever the blob.

    Raises:
        MalformedTensorsError: with the reason SIZE, SCHEMA or NONFINITE.
    """
    _check_size(blob, schema)
    _check_container(blob, schema)
    try:
        state = load(blob)
    except SafetensorError as error:
        raise MalformedTensorsError(Reason.SCHEMA, "a safetensors blob", type(error).__name__) from error
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise MalformedTensorsError(Reason.NONFINITE, "finite values", f"NaN or infinity in {name}")
    return {name: state[name] for name in sorted(state)}


def _check_binding(statement: UpdateStatement, expected: ExpectedUpdate) -> None:
    if statement.round != expected.round_number:
        raise UpdateRejectedError(
            Reason.STALE, client=expected.client, expected=f"round {expected.round_number}", got=f"{statement.round}"
        )
    pairs = {
        "run": (statement.run, expected.run),
        "attempt": (str(statement.attempt), str(expected.attempt)),
        "nonce": (statement.nonce, expected.nonce),
        "client": (statement.client, expected.client),
        "instructions_sha256": (statement.instructions_sha256, expected.instructions_sha256),
        "base_sha256": (statement.base_sha256, expected.base_sha256),
        "bundle_digest": (statement.bundle_digest, expected.bundle_digest),
    }
    for field, (got, wanted) in pairs.items():
        if got != wanted:
            raise UpdateRejectedError(Reason.BINDING, client=expected.client, expected=f"{field} {wanted}", got=got)


def _check_privacy(statement: UpdateStatement, expected: ExpectedUpdate) -> None:
    """A private update says its noise and no loss; a plain one says its loss and no noise."""
    is_private = statement.privacy is not None
    if is_private != expected.is_private or (statement.train_loss is None) != expected.is_private:
        wanted = "noise and no loss" if expected.is_private else "a loss and no noise"
        raise UpdateRejectedError(Reason.PRIVACY, client=expected.client, expected=wanted, got="otherwise")


def _check_weight(statement: UpdateStatement, expected: ExpectedUpdate) -> None:
    if not 1 <= statement.num_examples <= expected.max_examples:
        raise UpdateRejectedError(
            Reason.WEIGHT,
            client=expected.client,
            expected=f"num_examples 1 to {expected.max_examples}",
            got=f"{statement.num_examples}",
        )


def _read_state(blob: bytes, statement: UpdateStatement, expected: ExpectedUpdate) -> TensorDict:
    scalars = expected.scalars
    schema = AdapterSchema.of_scalars(scalars.steps, scalars.directions) if scalars else AdapterSchema.of(expected.base)
    try:
        _check_size(blob, schema)
        _check_digest(blob, statement)
        return decode_tensors(blob, schema)
    except MalformedTensorsError as error:
        raise UpdateRejectedError(
            error.reason, client=expected.client, expected=error.expected, got=error.got
        ) from error


def _check_digest(blob: bytes, statement: UpdateStatement) -> None:
    if (got := digest_of(blob)) != statement.update_sha256:
        raise MalformedTensorsError(Reason.DIGEST, statement.update_sha256, got)


def _check_norm(state: TensorDict, expected: ExpectedUpdate) -> None:
    """Bounds the Euclidean norm of the step from the round's base, over all tensors, in float64.

    The step of LoRA's products B A is bounded as well: factors within the bound can have a product far beyond it.
    """
    if expected.scalars:
        norm = expected.scalars.unit_norm * float(state[SCALARS].double().norm())
    else:
        norm = max(step_norm(state, expected.base), product_step_norm(state, expected.base))
    if not norm <= expected.max_update_norm:
        raise UpdateRejectedError(
            Reason.NORM, client=expected.client, expected=f"norm <= {expected.max_update_norm:g}", got=f"{norm:g}"
        )


def step_norm(state: TensorDict, base: TensorDict) -> float:
    """Returns the Euclidean norm of the step from ``base`` to ``state``, over all tensors, in float64."""
    squares = (float((state[name].double() - tensor).square().sum()) for name, tensor in base.items())
    return math.sqrt(sum(squares))


def _check_size(blob: bytes, schema: AdapterSchema) -> None:
    smallest = _LENGTH_BYTES + schema.data_bytes
    largest = smallest + schema.max_header_bytes
    if not smallest <= len(blob) <= largest:
        raise MalformedTensorsError(Reason.SIZE, f"{smallest} to {largest} bytes", f"{len(blob)} bytes")


def _check_container(blob: bytes, schema: AdapterSchema) -> None:
    header_bytes = int.from_bytes(blob[:_LENGTH_BYTES], "little")
    wanted = len(blob) - _LENGTH_BYTES - schema.data_bytes
    if header_bytes != wanted:
        raise MalformedTensorsError(Reason.SCHEMA, f"a header of {wanted} bytes", f"{header_bytes} bytes")
    entries = _read_header(blob[_LENGTH_BYTES : _LENGTH_BYTES + header_bytes])
    if entries.keys() != schema.shapes.keys():
        unlike = sorted(entries.keys() ^ schema.shapes.keys())[0]
        raise MalformedTensorsError(Reason.SCHEMA, "exactly the adapter's names", f"a difference at {unlike[:80]!r}")
    for name, shape in schema.shapes.items():
        _check_entry(name, entries[name], shape, schema.dtype)


def _read_header(header: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(header, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise MalformedTensorsError(Reason.SCHEMA, "a header of unique keys", type(error).__name__) from error
    if not isinstance(entries, dict):
        raise MalformedTensorsError(Reason.SCHEMA, "an object as header", type(entries).__name__)
    return entries


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("duplicate key")
    return dict(pairs)


def _check_entry(name: str, entry: object, shape: tuple[int, ...], dtype: str) -> None:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise MalformedTensorsError(Reason.SCHEMA, "dtype, shape and data_offsets", f"something else for {name}")
    if entry["dtype"] != dtype or entry["shape"] != list(shape):
        raise MalformedTensorsError(Reason.SCHEMA, f"{dtype} {list(shape)} for {name}", "another dtype or shape")
