import json
import re
from pathlib import Path
from typing import get_args

import scaleot_core.privacy as privacy_package
from scaleot_core.bundle.hash_chain import Line
from scaleot_core.privacy import ledger_file, ledger_head
from scaleot_core.privacy.data_set import DataSet
from scaleot_core.privacy.ledger_lines import FORMAT, Entry, LedgerTerms

DOCUMENT = (Path(privacy_package.__file__).parent / "LEDGER.md").read_text(encoding="utf-8")


def named(text: str) -> set[str]:
    return set(re.findall(r"`([a-z_0-9]+)`", text))


def test_the_table_of_lines_lists_exactly_the_types_and_fields_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", DOCUMENT, re.MULTILINE)
    listed = {row[0]: named(row[1]) for row in rows if row[0] != "type"}  # the table's head
    of_the_code = {kind.model_fields["type"].default: set(kind.model_fields) - {"type"} for kind in get_args(Entry)}
    assert listed == of_the_code


def test_the_terms_are_named_field_by_field() -> None:
    (sentence,) = re.findall(r"^`terms` are (.*?)\. A reader", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert named(sentence) == set(LedgerTerms.model_fields) | set(DataSet.model_fields)


def test_the_examples_are_json_with_the_fields_of_the_code() -> None:
    line, head = (json.loads(example) for example in re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL))
    assert list(line) == sorted([*Line.model_fields, "sha256"])
    assert list(head) == sorted(ledger_head.LedgerHead.model_fields)
    assert head["format"] == ledger_head.LedgerHead.model_fields["format"].default


def test_the_document_names_the_constants_of_the_code() -> None:
    files = (
        ledger_file.LINES_FILE,
        ledger_file.LOCK_FILE,
        f"{ledger_file.RELEASES_DIRECTORY}/<sha256>",
        ledger_head.HEAD_FILE,
    )
    for constant in (FORMAT, *files):
        assert constant in DOCUMENT
