"""What may not stand in a bundle's files: settings that make a library import or download code."""

import json
from pathlib import Path

from scaleot_core.bundle.canonical import Json
from scaleot_core.errors import VerificationError

MAX_CONFIG_BYTES = 4 * 1024 * 1024
CODE_KEYS = frozenset(
    {
        "auto_map",  # transformers: a class in a Python file beside the model
        "custom_pipelines",
        "trust_remote_code",
        "attn_implementation",  # transformers: may name a repository of compiled kernels to download
        "_attn_implementation",
        "experts_implementation",
        "_experts_implementation",
    }
)


def refuse_code(name: str, file: Path) -> None:
    """Refuses a configuration (``*config.json``) in which any of ``CODE_KEYS`` stands, at any depth.

    Raises ``VerificationError`` (``inner.config``), also for a configuration that is no JSON or over 4 MiB.
    """
    if not name.endswith("config.json"):
        return
    with file.open("rb") as opened:
        data = opened.read(MAX_CONFIG_BYTES + 1)
    if len(data) > MAX_CONFIG_BYTES:
        raise VerificationError("inner.config", f"{name}: expected at most {MAX_CONFIG_BYTES} bytes")
    try:
        json.loads(data.decode(), object_hook=_refuse_code_keys)
    except (ValueError, RecursionError) as error:
        raise VerificationError("inner.config", f"{name}: expected JSON") from error


def _refuse_code_keys(value: dict[str, Json]) -> None:
    """Sees every object of the text, the innermost first, also one that a later key of the same name would hide."""
    for key in sorted(CODE_KEYS & value.keys()):
        raise VerificationError("inner.config", f"a configuration may not name code to load: key {key!r}")
