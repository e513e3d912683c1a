"""What is wrong with a run file: where, what came, what was expected, and the nearest that exists.

Knows pydantic, not the keys: those come with the schema it is given.
"""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from scaleot_core.assets import ASSETS

Document = dict[str, Any]
"""A run file as TOML gives it."""

Key = tuple[str, ...]
"""A section and a key, what lies below it in a table of tables, or one name at the top."""

_SHOWN_CHARACTERS = 60
_TYPES: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text in quotes",
    Any: "a value",
}


def describe_faults(schema: type[BaseModel], errors: Sequence[ErrorDetails]) -> dict[Key, str]:
    """Turns pydantic's errors of ``schema`` into one sentence for each faulty key."""
    faults: dict[Key, str] = {}
    for error in errors:
        key = tuple(part for part in error["loc"] if isinstance(part, str))  # of a list the whole, not its items
        context = error.get("ctx", {})
        if error["type"] == "default_factory_not_called":
            continue  # follows from another key's fault, which is reported
        if error["type"] == "extra_forbidden":
            faults[key] = _unknown(schema, key)
        elif error["type"] == "missing":
            faults[key] = f"{'.'.join(key)}: missing, expected {_expected(schema, key, error)}"
        elif error["type"] == "scaleot":
            key, got = _place(key, context.get("key"), error["input"])
            faults[key] = f"{'.'.join(key)}: got {_shown(got)}, expected {error['msg']}"
        else:
            faults[key] = f"{'.'.join(key)}: got {_shown(error['input'])}, expected {_expected(schema, key, error)}"
    return faults


def path_fault(value: str, kind: str) -> str | None:
    """Says what is wrong with an asset's name or an absolute path that should lead to a ``kind``, or nothing.

    ``kind`` is "directory" or "file".
    """
    if value in ASSETS:
        asset_kind = "directory" if ASSETS[value].is_directory else "file"
        return None if asset_kind == kind else f'got the asset "{value}", expected {_asset_names(kind)}'
    try:
        found = Path(value).is_dir() if kind == "directory" else Path(value).is_file()
    except OSError as error:
        return f'got "{value}", which cannot be read: {error.strerror}'
    if found:
        return None
    near = _nearest(
        Path(value).name, [name for name, asset in ASSETS.items() if asset.is_directory == (kind == "directory")]
    )
    hint = f'; did you mean the asset "{near}"?' if near else f"; expected a {kind} or {_asset_names(kind)}"
    return f'no {kind} "{value}"{hint}'


def _place(key: Key, named: str | None, given: Any) -> tuple[Key, Any]:
    """Returns where a rule of our own sees its fault and what stands there: below ``key``, if it names that."""
    for part in named.split(".") if named else ():
        key, given = (*key, part), given.get(part)
    return key, given


def _assets_of(kind: str) -> list[str]:
    return [name for name, asset in ASSETS.items() if asset.is_directory == (kind == "directory")]


def _asset_names(kind: str) -> str:
    return "one of the assets " + ", ".join(f'"{name}"' for name in _assets_of(kind))


def _unknown(schema: type[BaseModel], key: Key) -> str:
    leaf = key[-1]
    section = _model_at(schema, key[:-1])
    near = _nearest(leaf, list(section.model_fields) if section else [])
    elsewhere = [".".join(path) for path in _keys(schema) if path[-1] == leaf]
    if elsewhere:
        hint = f"did you mean {' or '.join(elsewhere)}?"
    elif near:
        hint = f"did you mean {'.'.join((*key[:-1], near))}?"
    else:
        hint = f"known here: {', '.join(section.model_fields if section else ())}"
    return f"{'.'.join(key)}: no such key; {hint}"


def _expected(schema: type[BaseModel], key: Key, error: ErrorDetails) -> str:
    parent = _model_at(schema, key[:-1])
    field = parent.model_fields.get(key[-1]) if parent else None
    if len(key) == 1 and _model_at(schema, key):
        return f"a table: [{key[0]}]"
    limits = field.metadata if field else []
    return _kind(_annotation_at(schema, key), limits, str(error["input"]))


def _kind(annotation: object, limits: Sequence[object], given: str) -> str:
    """Says what ``annotation`` stands for, within ``limits``; of names, also which is the nearest to ``given``."""
    if get_origin(annotation) is Literal:
        values = [str(value) for value in get_args(annotation)]
        near = _nearest(given, values)
        known = " or ".join(f'"{value}"' for value in values)
        return known + (f'; did you mean "{near}"?' if near else "")
    if get_origin(annotation) is list:
        (item,) = get_args(annotation)
        each = "" if item is Any else f", each {_kind(_bare(item), _limits_of(item), given)}"
        return f"a list{_range(limits)}{each}"
    return _TYPES.get(annotation, "a table") + _range(limits)


def _limits_of(annotation: object) -> Sequence[object]:
    """Returns what an item's own ``Field`` bounds it by."""
    fields = [extra for extra in get_args(annotation)[1:] if isinstance(extra, FieldInfo)]
    return fields[0].metadata if fields else []


def _range(metadata: Sequence[object]) -> str:
    limits: dict[type, Any] = {type(limit): limit for limit in metadata}
    if {annotated_types.Ge, annotated_types.Le} <= limits.keys():
        return f" from {limits[annotated_types.Ge].ge} to {limits[annotated_types.Le].le}"
    if {annotated_types.Gt, annotated_types.Lt} <= limits.keys():
        return f" between {limits[annotated_types.Gt].gt} and {limits[annotated_types.Lt].lt}"
    if annotated_types.Ge in limits:
        return f", at least {limits[annotated_types.Ge].ge}"
    if annotated_types.Gt in limits:
        return f" above {limits[annotated_types.Gt].gt}"
    return ", not empty" if annotated_types.MinLen in limits else ""


def _model_at(schema: type[BaseModel], key: Key) -> type[BaseModel] | None:
    annotation = _annotation_at(schema, key)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _annotation_at(schema: type[BaseModel], key: Key) -> object:
    """Returns the type of what stands at ``key``, through sections and tables of tables; ``None``: no such key."""
    found: object = schema
    for part in key:
        if get_origin(found) is dict:
            found = get_args(found)[1]
        elif isinstance(found, type) and issubclass(found, BaseModel):
            field = found.model_fields.get(part)
            found = field.annotation if field else None
        else:
            return None
        found = _bare(found)
    return found


def _bare(annotation: object) -> object:
    """Returns a type without what ``Annotated`` adds to it."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _keys(schema: type[BaseModel]) -> list[Key]:
    keys: list[Key] = []
    for name in schema.model_fields:
        section = _model_at(schema, (name,))
        keys += [(name, key) for key in section.model_fields] if section else [(name,)]
    return keys


def _nearest(word: str, known: list[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, known, n=1)), None)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "a table"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
