"""Who may take part in a run, as the model owner knows it from elsewhere: never from what a node says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from scaleot_core.bundle import VerifyingKey
from scaleot_core.bundle.grant import Organisation
from scaleot_core.bundle.public_keys import VerifyingKeyField
from scaleot_core.digested import with_digest, without_digest
from scaleot_core.errors import InputError

MEMBERS_FILE = "members.json"


class Membership(Protocol):
    """The organisations and their keys: a file of a simulation's, or the registry of a deployment."""

    def verifying_key(self, name: str) -> VerifyingKey | None:
        """Returns the key that an organisation signs with; ``None`` for one that nobody has approved."""
        ...

    def is_active(self, name: str, round_number: int) -> bool:
        """Whether an organisation is approved and not revoked from this round or an earlier one."""
        ...

    def max_examples(self, name: str) -> int:
        """Returns the largest weight that an organisation may claim; raises ``InputError`` for an unknown one."""
        ...


class MembersFile(BaseModel):
    """``members.json``: the organisations of a simulation, none of which is ever revoked."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    format: Literal["scaleot.members/1"] = "scaleot.members/1"
    verifying_keys: dict[Organisation, VerifyingKeyField]
    max_claimed_examples: int

    def verifying_key(self, name: str) -> VerifyingKey | None:
        """As ``Membership`` has it."""
        return self.verifying_keys.get(name)

    def is_active(self, name: str, round_number: int) -> bool:
        """Whether the organisation is in the file; rounds make no difference."""
        del round_number
        return name in self.verifying_keys

    def max_examples(self, name: str) -> int:
        """As ``Membership`` has it: the same for all."""
        if name not in self.verifying_keys:
            raise InputError(f"{name} is none of the run's organisations")
        return self.max_claimed_examples


def encode_members(keys: Mapping[str, VerifyingKey], *, max_examples: int) -> bytes:
    """Returns the content of ``members.json``."""
    members = MembersFile(verifying_keys=dict(keys), max_claimed_examples=max_examples)
    return with_digest(members.model_dump_json().encode())


def read_members(path: Path) -> MembersFile:
    """Reads ``members.json``; raises ``InputError`` if it is missing, malformed or damaged."""
    try:
        return MembersFile.model_validate_json(without_digest(path.read_bytes(), path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        raise InputError(f"{path} is malformed: {error}") from error
