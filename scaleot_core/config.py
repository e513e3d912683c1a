"""Reading and writing run files: from TOML and overrides to one checked ``RunFile``, and back.

A relative path in a run file starts at the run file's own directory, one given by ``--set`` at the current directory.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from scaleot_core.assets import is_asset
from scaleot_core.config_faults import Document, Key, describe_faults, path_fault
from scaleot_core.errors import RunFileError
from scaleot_core.run_file import RunFile, Section, TaskSection, aggregation_fault

PATH_KEYS = {
    ("model", "source"): "directory",
    ("importance", "text"): "file",
    ("data", "train"): "file",
    ("data", "test"): "file",
    ("data", "validation"): "file",
    ("canary", "text"): "file",
}
"""Keys that hold an embedded asset's name or a path, and what the path leads to; an empty text leads nowhere."""

OUTPUT_KEYS = (("model_privacy", "disclosure_record"),)
"""Keys that hold a path which need not exist yet."""


def read_run_file(path: Path | None, overrides: Sequence[str]) -> RunFile:
    """Reads a run file, sets ``overrides`` ("section.key=value", the value in TOML or bare text) and checks it all.

    Without a path the overrides change the quickstart. Paths come back absolute; whether they lead to something of
    the right kind is checked, what stands in it is not.

    Raises:
        RunFileError: with every fault of the file and the overrides at once.
    """
    source = "the command line" if path is None else str(path)
    document = {} if path is None else _parse(path)
    _make_paths_absolute(document, Path() if path is None else path.parent)
    changes, faults = _parse_overrides(overrides)
    _make_paths_absolute(changes, Path())
    _merge(document, changes)
    run, found = _validate(document)
    _find_paths(document, found)
    faults += [f"{fault} (from --set)" if _is_set(changes, key) else fault for key, fault in found.items()]
    if faults or run is None:
        raise RunFileError(source, tuple(faults))
    return run


def read_run_file_elsewhere(path: Path) -> RunFile:
    """Reads a run file where the model and the texts that it names are not: on a server that must not see them.

    Raises:
        RunFileError: with every fault of the file at once.
    """
    document = _parse(path)
    _make_paths_absolute(document, path.parent)
    run, faults = _validate(document)
    if faults or run is None:
        raise RunFileError(str(path), tuple(faults.values()))
    return run


def with_settings(run: RunFile, settings: Mapping[str, Any]) -> RunFile:
    """Returns the run file with ``settings`` ("section.key" to a value) in place of its own.

    Raises:
        RunFileError: with every fault of the settings at once.
    """
    changes: Document = {}
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        (changes.setdefault(section, {}) if section else changes)[name] = value
    document = run.model_dump(exclude_unset=True)  # a default that follows another key follows its new value
    _merge(document, changes)
    changed, faults = _validate(document)
    _find_paths(document, faults)
    if faults or changed is None:
        raise RunFileError(", ".join(f"{key} = {value!r}" for key, value in settings.items()), tuple(faults.values()))
    return changed


def to_toml(run: RunFile) -> str:
    """Writes the run file in full, each key with its meaning beside it; it reads back to an equal ``RunFile``."""
    values = run.model_dump()
    lines = ["# a run file: scaleot simulate FILE.toml", _line("seed", values["seed"], RunFile)]
    for name, field in RunFile.model_fields.items():
        section = getattr(run, name)
        if isinstance(section, Section):
            lines += ["", f"[{name}]  # {field.description}"]
            tables = {key: value for key, value in values[name].items() if isinstance(value, dict)}
            plain = {key: value for key, value in values[name].items() if key not in tables}
            lines += [_line(key, value, type(section)) for key, value in plain.items()]
            lines += [tomli_w.dumps({name: {key: table}}).rstrip() for key, table in tables.items() if table]
    return "\n".join(lines) + "\n"


def _line(key: str, value: object, section: type[Section]) -> str:
    return f"{tomli_w.dumps({key: value}).rstrip():<40}  # {section.model_fields[key].description}"


def _parse(path: Path) -> Document:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunFileError(str(path), (f"it cannot be read: {error.strerror}",)) from error
    except (ValueError, RecursionError) as error:
        raise RunFileError(str(path), (f"it is no TOML: {error}",)) from error


def _parse_overrides(overrides: Sequence[str]) -> tuple[Document, list[str]]:
    changes: Document = {}
    faults = []
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts) or len(parts) > 2:
            faults.append(f'--set {override}: expected section.key=value, for example "federation.clients=8"')
        elif len(parts) == 1:
            changes[parts[0]] = _override_value(text)
        elif isinstance(table := changes.setdefault(parts[0], {}), dict):
            table[parts[1]] = _override_value(text)
    return changes, faults


def _override_value(text: str) -> object:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text.strip()
    return parsed["value"] if parsed.keys() == {"value"} else text.strip()


def _merge(document: Document, changes: Document) -> None:
    for name, value in changes.items():
        if isinstance(value, dict) and name in document:
            if isinstance(document[name], dict):
                document[name].update(value)
        else:
            document[name] = value


def _is_set(changes: Document, key: Key) -> bool:
    value: object = changes
    for part in key:
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


def _make_paths_absolute(document: Document, base: Path) -> None:
    for section, key in (*PATH_KEYS, *OUTPUT_KEYS):
        _make_path_absolute(document.get(section), key, base)
    compare = document.get("compare")
    tasks = compare.get("tasks") if isinstance(compare, dict) else None
    for task in tasks.values() if isinstance(tasks, dict) else ():
        for key in TaskSection.model_fields:
            _make_path_absolute(task, key, base)
    _make_compared_paths_absolute(compare if isinstance(compare, dict) else {}, base)


def _make_compared_paths_absolute(compare: Document, base: Path) -> None:
    varied, variants = compare.get("vary"), compare.get("variants")
    for section, key in (*PATH_KEYS, *OUTPUT_KEYS):
        name = f"{section}.{key}"
        for variant in variants.values() if isinstance(variants, dict) else ():
            _make_path_absolute(variant, name, base)
        if isinstance(varied, dict) and isinstance(values := varied.get(name), list):
            varied[name] = [_absolute(value, base) for value in values]


def _make_path_absolute(table: object, key: str, base: Path) -> None:
    if isinstance(table, dict) and key in table:
        table[key] = _absolute(table[key], base)


def _absolute(value: object, base: Path) -> object:
    """Returns a path from the root on; what is no path, an asset's name or empty, as it is."""
    if not isinstance(value, str) or not value or is_asset(value):
        return value
    path = Path.home() / value[2:] if value.startswith("~/") else Path(value)
    return str(base.absolute() / path)


def _validate(document: Document) -> tuple[RunFile | None, dict[Key, str]]:
    faults: dict[Key, str] = {}
    run = None
    try:
        run = RunFile.model_validate(document)
    except ValidationError as error:
        faults = describe_faults(RunFile, error.errors())
    # pydantic skips the rule that joins sections where one of them has another fault: say it all the same.
    sections = [document.get(name) for name in ("federation", "adapter", "privacy")]
    federation, adapter, privacy = [section if isinstance(section, dict) else {} for section in sections]
    aggregation = federation.get("aggregation")
    if fault := aggregation_fault(aggregation, adapter.get("kind"), privacy.get("mechanism")):
        faults.setdefault(
            ("federation", "aggregation"), f'federation.aggregation: got "{aggregation}", expected {fault}'
        )
    return run, faults


def _find_paths(document: Document, faults: dict[Key, str]) -> None:
    """Adds a fault for every path that leads to nothing, or to something of another kind."""
    for (section, key), kind in PATH_KEYS.items():
        table = document.get(section)
        if (
            isinstance(table, dict)
            and isinstance(value := table.get(key), str)
            and value
            and (section, key) not in faults
        ):
            fault = path_fault(value, kind)
            if fault:
                faults[section, key] = f"{section}.{key}: {fault}"
