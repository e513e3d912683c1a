"""The report's two files in a run's output directory, and how such files are written."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaleot_core.errors import OutputError


def json_text(document: Mapping[str, Any]) -> str:
    """Returns a document as JSON text; a number that is not finite, which JSON cannot hold, becomes null."""
    return json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def json_text_by_lines(document: Mapping[str, Any]) -> str:
    """Returns a document as ``json_text`` does, each item of its lists, and each other value, on one line."""
    members = [f"{json.dumps(key)}: {_one_line_each(value)}" for key, value in _finite(document).items()]
    return "{\n" + ",\n".join(members) + "\n}\n"


def write_texts(texts: Mapping[str, str], directory: Path) -> tuple[Path, ...]:
    """Writes files by their names to an existing directory, each whole or not at all; returns their paths.

    Raises:
        OutputError: the directory cannot be written.
    """
    try:
        return tuple(_write_whole(directory / name, text) for name, text in texts.items())
    except OSError as error:
        names = ", ".join(texts)
        raise OutputError(f"{names} cannot be written to {directory}: {error.strerror or error}") from error


def _write_whole(path: Path, text: str) -> Path:
    """Writes a file under another name and renames it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _one_line_each(value: Any) -> str:
    if not isinstance(value, list):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    return "[\n" + ",\n".join(json.dumps(item, ensure_ascii=False, allow_nan=False) for item in value) + "\n]"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
