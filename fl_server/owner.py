"""The model owner's working directory of one run: what goes in, what comes out, and how it is written.

==============================  ======  ====================================================================
``federation.json``             in      ``OwnerRunSettings``
``initial_adapter.safetensors`` in      the adapter of round 0, float32
``run.key``                     in      the server's signing key of this run, 0600
``run.certificate.json``        in      the owner key's certificate for it
``members.json``                in      the organisations' public keys, where no registry has them
``rounds.db``, ``blobs/``       state   ``round_store``: the one truth of what happened
``quarantine/``                 state   refused updates, for people to look at
``rounds.lock``                 state   held by the one process that works here
``adapter.safetensors``         out     the adapter after the last round that ended, the same names and shapes
``adapter-<round>.safetensors`` out     the adapter after each round
``rounds.json``                 out     ``RoundsFile``: one record for each round, the failed one too
==============================  ======  ====================================================================

What comes out is for people and reports. It is written from the state after every round, and again at a restart.
"""

import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file

from fl_server.blob_store import BLOBS_DIRECTORY, QUARANTINE_DIRECTORY
from fl_server.membership import MEMBERS_FILE, encode_members
from fl_server.run_key import write_run_key
from fl_server.run_lock import locked_run
from scaleot_core.adapters.spec import AdapterSpec
from scaleot_core.bundle import SigningKey, VerifyingKey
from scaleot_core.bundle.canonical import Sha256
from scaleot_core.bundle.files import replace_file
from scaleot_core.bundle.grant import Organisation
from scaleot_core.digested import with_digest, without_digest
from scaleot_core.errors import InputError, OutputError, RunFileError
from scaleot_core.federation.messages import MAX_SEED, PrivacyRequest, PrivateRelease, RunName, digest_of
from scaleot_core.federation.rules import Aggregation, AggregationRule
from scaleot_core.federation.validation import encode_tensors
from scaleot_core.privacy.client_level import ClientLevelNoise
from scaleot_core.privacy.private_rounds import AskedTraining
from scaleot_core.shapes import TensorDict

SETTINGS_FILE, INITIAL_ADAPTER_FILE = "federation.json", "initial_adapter.safetensors"
ADAPTER_FILE, ROUNDS_FILE = "adapter.safetensors", "rounds.json"

_FROZEN = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)
Count = Annotated[int, Field(ge=1)]
OwnPath = Annotated[Path, Field(strict=False)]
"""JSON has no paths; a relative one starts at the run's directory."""


class CanarySettings(BaseModel):
    """What the owner measures every new adapter on, before the federation has it."""

    model_config = _FROZEN
    bundle: OwnPath
    """The run's sealed emulator."""
    data_key: OwnPath
    """What opens it."""
    owner_public_key: OwnPath
    text: OwnPath
    """Public records, as a data owner's."""
    tolerance: Annotated[float, Field(gt=0)] = 0.2
    """A loss above (1 + tolerance) times that of the round's base aborts the round."""


class OwnerRunSettings(BaseModel):
    """Everything the server has to know of one run."""

    model_config = _FROZEN
    format: Literal["scaleot.federation/1"] = "scaleot.federation/1"
    run: RunName
    """Binds every statement to this run; another run has another name."""
    clients: Count
    """Data owners expected; the first round waits for them until its deadline."""
    clients_per_round: Count
    rounds: Count
    local_steps: Count
    batch_size: Count
    learning_rate: Annotated[float, Field(gt=0)]
    optimizer: Literal["adamw", "sgd"]
    max_tokens: Annotated[int, Field(ge=2)]
    aggregation: Annotated[Aggregation, Field(strict=False)]
    trimmed_share: float = 0.0
    """As ``AggregationRule`` has it."""
    assumed_attackers: int = 0
    """As ``AggregationRule`` has it."""
    adapter: AdapterSpec
    bundle_digest: Sha256
    privacy: PrivacyRequest | None = None
    """The mechanism that updates come through; ``None`` takes them as they are."""
    client_level: ClientLevelNoise | None = None
    """What the server adds to the sum of updates, that trust it with what they are; ``None`` for nothing."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    round_deadline_seconds: Annotated[float, Field(gt=0)]
    max_examples: Count = 10_000_000
    """The largest weight that one client may claim."""
    max_update_norm: Annotated[float, Field(gt=0)] = 1_000.0
    """The longest step from a round's base that one client may send, of the adapter and of LoRA's products B A.

    A bound on nonsense, no privacy mechanism.
    """
    quorum: Count = 1
    """Accepted updates without which a round does not close."""
    over_selection: Annotated[float, Field(ge=1)] = 1.0
    """Of ``clients_per_round``: how many are asked, so that the round closes without the slowest."""
    max_attempts: Count = 3
    """Requests to one client in one round, of one life of the server."""
    node_wait_seconds: Annotated[float, Field(gt=0)] = 300.0
    """A round begins without the clients that are not there by then, if the quorum is."""
    canary: CanarySettings | None = None
    """``None`` measures nothing."""
    registry: OwnPath | None = None
    """The registry of organisations; ``None`` takes ``members.json``."""
    audit_log: OwnPath | None = None
    """``None`` keeps none."""

    @property
    def rule(self) -> AggregationRule:
        """How updates become one adapter; raises ``InputError`` where the rule's own number is missing."""
        return AggregationRule(self.aggregation, self.trimmed_share, self.assumed_attackers)

    @property
    def asked_training(self) -> AskedTraining | None:
        """What is asked of the clients under a mechanism of privacy; ``None`` without one."""
        if self.privacy is None:
            return None
        return AskedTraining(
            self.privacy, self.local_steps, self.batch_size, self.learning_rate, self.optimizer, self.seed
        )

    @model_validator(mode="after")
    def _check_cohort(self) -> Self:
        if self.privacy is not None and self.privacy.rounds != self.rounds:
            raise ValueError(f"privacy.rounds is {self.privacy.rounds}, but there are {self.rounds} rounds")
        if self.privacy is not None and self.privacy.sends_scalars and not self.aggregation.is_mean:
            raise ValueError(
                f"aggregation is {self.aggregation.value}, but the scalars of {self.privacy.mechanism} can only be "
                "averaged: fedavg or ffa"
            )
        if self.client_level is not None and (self.privacy is not None or not self.aggregation.is_mean):
            raise ValueError("client_level goes with fedavg or ffa, and with no mechanism of the clients")
        if self.quorum > self.clients_per_round:
            raise ValueError(f"quorum is {self.quorum}, but clients_per_round is {self.clients_per_round}")
        if self.clients_per_round > self.clients:
            raise ValueError(f"clients_per_round is {self.clients_per_round}, but there are {self.clients} clients")
        if not 0 <= self.adapter.seed <= MAX_SEED:
            raise ValueError(f"adapter.seed must be 0 to {MAX_SEED}")
        return self


class RejectedClient(BaseModel):
    """A client whose update did not go in."""

    model_config = _FROZEN
    client: str
    reason: str
    """A ``Reason``."""
    detail: str


class RoundRecord(BaseModel):
    """What a round was."""

    model_config = _FROZEN
    round: Count
    clients: tuple[Organisation, ...]
    """Those whose updates went in."""
    rejected: tuple[RejectedClient, ...]
    train_loss: float | None
    """The example-weighted mean over the clients; none if the round failed, or under a mechanism of privacy."""
    client_shares: dict[Organisation, float] = {}
    """What each client counts for in the adapter, of ``multi_krum`` and ``geometric_median`` alone."""
    residual_share: float | None = None
    """Of ``product`` alone: what the rank had no room for, of the Frobenius norm of the mean of products."""
    seconds: float
    aggregate_seconds: float
    """Of ``seconds``, what the server itself worked: all but the waiting for replies."""
    bytes_down: int
    """Statements and adapters to the whole cohort, without the transport's framing."""
    bytes_up: int
    failure: str | None = None
    """Why the round could not close, so that the run stopped; none if it did."""
    aborted: str | None = None
    """Why the round's adapter was thrown away and its base kept, and the run went on; none if it was not."""
    flags: dict[Organisation, tuple[str, ...]] = {}
    """What is odd about updates, as ``behaviour.Flag`` has it; nobody is refused for it."""
    adapter_sha256: Sha256 | None = None
    """Of the adapter's file after the round; rounds of earlier versions have none, nor has one that failed."""
    canary_loss: float | None = None
    """The adapter's loss on the owner's canary; none without one."""
    privacy: dict[Organisation, PrivateRelease] = {}
    """What each client whose update went in said of its noise; empty without a mechanism."""


class RoundsFile(BaseModel):
    """``rounds.json``."""

    model_config = _FROZEN
    format: Literal["scaleot.rounds/1"] = "scaleot.rounds/1"
    run: RunName
    rounds: tuple[RoundRecord, ...]


def write_run(
    directory: Path,
    settings: OwnerRunSettings,
    initial_adapter: TensorDict,
    *,
    owner: SigningKey,
    members: Mapping[str, VerifyingKey] | None = None,
) -> None:
    """Writes what a new run starts from, and removes what an earlier run left, whatever its state.

    The owner key certifies the run's own and is needed for nothing else. ``members`` are the organisations, unless
    ``settings.registry`` knows them.

    Raises:
        InputError: a server conducts the earlier run.
        OutputError: the directory cannot be written.
    """
    with locked_run(directory):
        _remove_run(directory)
        write_atomically(directory / INITIAL_ADAPTER_FILE, encode_tensors(initial_adapter))
        if members is not None:
            write_atomically(directory / MEMBERS_FILE, encode_members(members, max_examples=settings.max_examples))
        try:
            write_run_key(directory, settings.run, settings.bundle_digest, owner=owner, now=datetime.now(UTC))
        except OSError as error:
            raise OutputError(f"the run's key in {directory} cannot be written: {error}") from error
        write_atomically(directory / SETTINGS_FILE, with_digest(settings.model_dump_json().encode()))


def has_run(directory: Path) -> bool:
    """Whether a run was written here whole: starting the server goes on with it."""
    return (directory / SETTINGS_FILE).exists()


def _remove_run(directory: Path) -> None:
    """Removes a run, its settings first: what a crash leaves of it is no run."""
    files = (SETTINGS_FILE, ADAPTER_FILE, ROUNDS_FILE, MEMBERS_FILE, "rounds.db", "rounds.db-wal", "rounds.db-shm")
    for path in (*(directory / name for name in files), *directory.glob(round_adapter_file("*"))):
        path.unlink(missing_ok=True)
    for name in (BLOBS_DIRECTORY, QUARANTINE_DIRECTORY):
        shutil.rmtree(directory / name, ignore_errors=True)


def read_settings(directory: Path) -> OwnerRunSettings:
    """Reads ``federation.json``.

    Raises:
        InputError: it is missing or damaged.
        RunFileError: it has faults; all are listed.
    """
    path = directory / SETTINGS_FILE
    try:
        return OwnerRunSettings.model_validate_json(without_digest(_read(path), path))
    except ValidationError as error:
        raise RunFileError(str(path), tuple(_fault(fault["loc"], fault["msg"]) for fault in error.errors())) from error


def check_clients(directory: Path, clients: int) -> None:
    """Checks that a run expects this number of clients, so that no engine waits for one that never comes.

    Raises:
        InputError: it expects another number, or its settings cannot be read.
    """
    expected = read_settings(directory).clients
    if expected != clients:
        raise InputError(f"{directory / SETTINGS_FILE} expects {expected} clients; there are {clients} data owners")


def read_adapter(path: Path) -> TensorDict:
    """Reads an adapter's file, names sorted.

    Raises:
        InputError: it is missing or no safetensors file.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"the adapter {path} cannot be read: {error}") from error
    return {name: state[name] for name in sorted(state)}


def read_rounds(directory: Path) -> tuple[RoundRecord, ...]:
    """Reads the records of the rounds that are over; none if the first one is not.

    Raises:
        InputError: ``rounds.json`` is malformed or damaged.
    """
    path = directory / ROUNDS_FILE
    if not path.exists():
        return ()
    try:
        return RoundsFile.model_validate_json(without_digest(_read(path), path)).rounds
    except ValidationError as error:
        raise InputError(f"{path} is malformed: {error}") from error


def read_round_adapter(directory: Path, record: RoundRecord) -> TensorDict:
    """Reads the adapter after a round.

    Raises:
        InputError: its file is missing or damaged.
    """
    path = directory / round_adapter_file(record.round)
    if record.adapter_sha256 not in (None, digest_of(_read(path))):
        raise InputError(f"{path} is damaged: its SHA-256 is another. Started again, the server writes the newest anew")
    return read_adapter(path)


def round_adapter_file(number: int | Literal["*"]) -> str:
    """Returns the name of the file with the adapter after this round, counted from 1, or a pattern for all."""
    return f"adapter-{number}.safetensors"


def save_rounds(directory: Path, run: str, adapter: TensorDict, rounds: tuple[RoundRecord, ...]) -> None:
    """Writes the adapter and then the records, each at once or not at all.

    Raises:
        OutputError: the directory cannot be written.
    """
    encoded = encode_tensors(adapter)
    write_atomically(directory / round_adapter_file(len(rounds)), encoded)
    write_atomically(directory / ADAPTER_FILE, encoded)
    write_atomically(
        directory / ROUNDS_FILE, with_digest(RoundsFile(run=run, rounds=rounds).model_dump_json().encode())
    )


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a crash, sees the old content or the new one and nothing between.

    Raises:
        OutputError: the directory cannot be written.
    """
    try:
        replace_file(path, content, mode=0o666)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _fault(location: tuple[int | str, ...], message: str) -> str:
    return f"{'.'.join(map(str, location)) or 'file'}: {message}"
