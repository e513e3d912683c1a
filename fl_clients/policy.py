"""The data owner's own file: who it is, where its things lie, and what it lets a server ask.

Nothing of it comes over the wire, and nothing of it is sent but the organisation's name and, under a mechanism of
privacy, the declared number of records and the noise that follows from the budget.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from scaleot_core.bundle.grant import Organisation
from scaleot_core.errors import InputError, InstructionsRefusedError, RunFileError
from scaleot_core.federation.messages import Instructions, MechanismName, PrivacyRequest
from scaleot_core.privacy.noise_ranges import (
    LEAST_DELTA,
    LEAST_NOISE_MULTIPLIER,
    MOST_EPSILON,
    MOST_LMO_DIRECTIONS,
    MOST_PARAMETER,
)
from scaleot_core.privacy.units import unit_of

DATA_OWNER_FILE = "data-owner.toml"
MOST_RECORDS = 2**53 - 1
"""The greatest number that a signed statement can hold."""

_FROZEN = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)
Limit = Annotated[int, Field(ge=1)]
OwnPath = Annotated[Path, Field(strict=False)]
"""TOML has no paths; a relative one starts at the file's own directory."""


class Policy(BaseModel):
    """The most that this data owner does for a server in one round."""

    model_config = _FROZEN
    max_learning_rate: Annotated[float, Field(gt=0)] = 0.1
    max_local_steps: Limit = 1_000
    max_batch_size: Limit = 128
    max_tokens: Limit = 4_096
    max_adapter_rank: Limit = 256


class OwnPrivacy(BaseModel):
    """The differential privacy that this data owner insists on, whatever a server asks."""

    model_config = _FROZEN
    epsilon: Annotated[float, Field(gt=0, le=MOST_EPSILON)]
    """The budget of all releases of the data set, to all servers and runs together."""
    delta: Annotated[float, Field(ge=LEAST_DELTA, lt=1)]
    mechanisms: Annotated[list[MechanismName], Field(min_length=1)]
    """Those that it agrees to."""
    declared_records: Annotated[int, Field(ge=1, le=MOST_RECORDS)]
    """About how many records there are: a public number, told with every update, that the data owner chooses and
    leaves as it is when a record comes or goes. Samples are drawn at the rate that it gives, updates weigh by it, and
    the exact number is told to nobody. Half of the true number is the least that a server's bound on updates allows
    for."""
    noise_multiplier: Annotated[float, Field(ge=LEAST_NOISE_MULTIPLIER, le=MOST_PARAMETER)] | None = None
    """Left out: the least noise with which the rounds that a server plans keep the budget."""
    ledger: OwnPath = Path("ledger")
    """The directory of the ledger of this data set; ``scaleot budget --create`` makes it, once."""
    ledger_mirror: OwnPath | None = None
    """A directory elsewhere that keeps the ledger's last line, so that an older copy of the ledger is noticed."""

    @field_validator("mechanisms", mode="after")
    @classmethod
    def _have_one_unit(cls, mechanisms: list[MechanismName]) -> list[MechanismName]:
        if len({unit_of(mechanism) for mechanism in mechanisms}) > 1:
            raise PydanticCustomError(
                "scaleot",
                "update-gaussian hides all records of a data owner together and the others one record, so no ledger "
                "can hold both: keep one kind, or give each a data-owner.toml of its own",
            )
        return mechanisms

    @model_validator(mode="after")
    def _noise_fits(self) -> "OwnPrivacy":
        if self.noise_multiplier is not None and "lmo-dp" in self.mechanisms:
            raise PydanticCustomError(
                "scaleot", "noise_multiplier: leave it out beside lmo-dp, whose noise has no single multiplier"
            )
        return self


class DataOwnerFile(BaseModel):
    """``data-owner.toml``."""

    model_config = _FROZEN
    organisation: Organisation
    data: OwnPath
    bundle: OwnPath = Path("bundles/current")
    grant: OwnPath = Path("grant.json")
    identity_key: OwnPath = Path("identity.key")
    owner_public_key: OwnPath = Path("owner.pub")
    """The pinned key: no other signature counts."""
    signing_key: OwnPath = Path("signing.key")
    """What this data owner signs its updates with; the model owner knows the public half."""
    releases: OwnPath = Path("releases")
    """Where updates lie before they leave, and the model owner's receipts for them; made on first use."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["shipped", "float32"] = "shipped"
    """``float32`` widens an emulator that was shipped in half precision."""
    gradient_checkpointing: bool = False
    """Trains in less memory and more time, to the same result; the server neither asks nor knows."""
    node_port: Annotated[int, Field(ge=1, le=65_535)] = 9_094
    """Where the own SuperNode hands out work, on this machine alone; each node of a machine needs another."""
    tells_steps: bool | None = None
    """Whether the model owner is told the step that training is at; left out, only without a mechanism of privacy.

    How fast steps come depends on the private text, and under a mechanism on the sizes of its secret samples.
    """
    policy: Policy = Policy()
    privacy: OwnPrivacy | None = None
    """Left out: updates leave as they are, and can leak training text."""


@dataclass(frozen=True)
class PermittedInstructions:
    """Instructions that the data owner's policy allows; only ``permit`` makes them."""

    instructions: Instructions


def read_data_owner_file(directory: Path) -> DataOwnerFile:
    """Reads a data owner's file; its paths are made absolute.

    Raises:
        InputError: it is missing or no TOML.
        RunFileError: it has faults; all are listed.
    """
    path = directory / DATA_OWNER_FILE
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        own = DataOwnerFile.model_validate(values)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        faults = tuple(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise RunFileError(str(path), faults) from error
    base = directory.absolute()
    paths: dict[str, object] = {name: base / getattr(own, name) for name in _PATHS}
    if own.privacy is not None:
        mirror = own.privacy.ledger_mirror
        places = {"ledger": base / own.privacy.ledger, "ledger_mirror": None if mirror is None else base / mirror}
        paths["privacy"] = own.privacy.model_copy(update=places)
    return own.model_copy(update=paths)


def may_tell_steps(own: DataOwnerFile) -> bool:
    """Tells whether the model owner is told the step that training is at."""
    return own.privacy is None if own.tells_steps is None else own.tells_steps


def hides_records(directory: Path) -> bool:
    """Tells whether a data owner insists on a mechanism; so does one whose file cannot be read, for all we know."""
    try:
        return read_data_owner_file(directory).privacy is not None
    except InputError:
        return True


_PATHS = ("data", "bundle", "grant", "identity_key", "owner_public_key", "signing_key", "releases")


def permit(own: DataOwnerFile, instructions: Instructions) -> PermittedInstructions:
    """Returns the instructions if they are for this data owner and within its policy.

    Raises:
        InstructionsRefusedError: with the code of the first limit that does not hold.
    """
    if instructions.client != own.organisation:
        raise InstructionsRefusedError("instructions.client", expected=own.organisation, got=instructions.client)
    _check_privacy(own.privacy, instructions.privacy)
    limits: tuple[tuple[str, float, float], ...] = (
        ("learning_rate", instructions.learning_rate, own.policy.max_learning_rate),
        ("local_steps", instructions.local_steps, own.policy.max_local_steps),
        ("batch_size", instructions.batch_size, own.policy.max_batch_size),
        ("max_tokens", instructions.max_tokens, own.policy.max_tokens),
        ("adapter_rank", instructions.adapter.rank, own.policy.max_adapter_rank),
    )
    for name, asked, most in limits:
        if not 0 < asked <= most:
            raise InstructionsRefusedError(
                f"policy.{name}", expected=f"more than 0, at most {most:g}", got=f"{asked:g}"
            )
    return PermittedInstructions(instructions)


def _check_privacy(own: OwnPrivacy | None, asked: PrivacyRequest | None) -> None:
    """Checks that a mechanism is asked for exactly where the data owner insists on one, and that it is one of its own.

    Noise that nobody laid a budget out for would be worth nothing, so a server cannot add it either.
    """
    got = "none" if asked is None else asked.mechanism
    allowed = ["none"] if own is None else list(own.mechanisms)
    if got not in allowed:
        raise InstructionsRefusedError("policy.privacy", expected=f"one of {', '.join(allowed)}", got=got)
    if asked is not None and asked.mechanism == "lmo-dp" and asked.num_directions > MOST_LMO_DIRECTIONS:
        expected = f"at most {MOST_LMO_DIRECTIONS} directions under lmo-dp"
        raise InstructionsRefusedError("policy.privacy", expected=expected, got=f"{asked.num_directions}")
