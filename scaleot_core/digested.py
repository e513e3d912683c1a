"""JSON files that hold their own SHA-256, since a turned bit in a number would otherwise be another number.

``{"sha256": "<hex64>", ...}`` is of all other members, sorted and without a blank. Files of earlier versions have none
and are read as they are. It guards against a bad disk, not against a person.
"""

import hashlib
import json
from pathlib import Path

from scaleot_core.errors import InputError

MEMBER = "sha256"


def with_digest(data: bytes) -> bytes:
    """Returns a JSON object's text with its digest in it, indented for people."""
    values = json.loads(data)
    return json.dumps({**values, MEMBER: _digest(values)}, indent=2).encode()


def without_digest(data: bytes, path: Path) -> bytes:
    """Returns a JSON object's text without its digest, once that holds; what is no object is the caller's to refuse.

    Raises:
        InputError: the content has another digest; the message names ``path``.
    """
    try:
        values = json.loads(data)
    except ValueError:
        return data
    if not isinstance(values, dict) or MEMBER not in values:
        return data
    if values.pop(MEMBER) != _digest(values):
        raise InputError(f"{path} is damaged: its SHA-256 is another. Put back a copy of it, or have it written anew")
    return json.dumps(values).encode()


def _digest(values: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
