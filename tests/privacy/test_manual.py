"""The manual for data owners lists what the code sends, field by field and code by code."""

import ast
import json
import re
from collections import defaultdict
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import fl_clients
import scaleot_core.privacy as privacy_package
from fl_clients import refusal
from scaleot_core.bundle.distribution import TrainingRequest
from scaleot_core.cli import VERBS_GROUP, run
from scaleot_core.federation.messages import Introduction, PrivateRelease, Refusal, UpdateStatement
from scaleot_core.privacy.mechanism import MECHANISMS
from scaleot_core.privacy.units import unit_of

DOCUMENT = (Path(privacy_package.__file__).parent / "README.md").read_text(encoding="utf-8")
MESSAGES = {
    "introduction": Introduction,
    "update": UpdateStatement,
    "privacy": PrivateRelease,
    "refusal": Refusal,
    "training": TrainingRequest,
}


def named(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def table_below(head: str) -> list[list[str]]:
    """Returns the cells of the table whose first line begins so, without head and rule."""
    _, _, rest = DOCUMENT.partition(f"\n| {head} |")
    table, _, _ = rest.partition("\n\n")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def codes_in_the_sources() -> set[str]:
    """Returns the first part of each code that a client's own errors carry, and whole the codes of ``_CODES``."""
    raised = set()
    for path in Path(fl_clients.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "InstructionsRefusedError":
                raised.add(ast.literal_eval(_first_text(node.args[0])))
    return raised | {code for _, code in refusal._CODES} | {"adapter.", *refusal._TELLING_CODES, refusal.WITHHELD}


def _first_text(argument: ast.expr) -> ast.expr:
    return argument.values[0] if isinstance(argument, ast.JoinedStr) else argument


def test_the_manual_lists_exactly_the_fields_of_every_message() -> None:
    listed: dict[str, list[str]] = defaultdict(list)
    for message, fields, _ in table_below("message"):
        listed[message] += named(fields)
    assert {message: sorted(fields) for message, fields in listed.items()} == {
        message: sorted(model.model_fields) for message, model in MESSAGES.items()
    }


def test_the_manual_judges_every_refusal_code() -> None:
    listed = {code for codes, _ in table_below("refusal codes") for code in named(codes)}
    families = tuple(code[:-1] for code in listed if code.endswith(".*"))
    in_the_sources = codes_in_the_sources()
    assert all(code in listed or code.startswith(families) for code in in_the_sources)
    assert all(any(code.startswith(entry.removesuffix("*")) for code in in_the_sources) for entry in listed)


def test_the_manual_lists_every_mechanism_with_its_unit_and_neighbours() -> None:
    rows = {named(mechanism)[0]: unit for mechanism, _, _, unit in table_below("mechanism")}
    assert rows.keys() == MECHANISMS.keys()
    for mechanism, unit in rows.items():
        assert unit.startswith(unit_of(mechanism)[0])


def test_the_statement_of_the_manual_is_what_its_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = re.findall(r"^`scaleot (noise [^`]*)` ends with$", DOCUMENT, re.MULTILINE)
    assert run([*command.split(), "--json"], entry_points(group=VERBS_GROUP)) == 0
    quoted = " ".join(line.removeprefix("> ") for line in DOCUMENT.splitlines() if line.startswith("> "))
    version = r"dp-accounting [\d.]+"
    assert re.sub(version, "", json.loads(capsys.readouterr().out)["statement"]) == re.sub(version, "", quoted)
