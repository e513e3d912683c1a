import json
import re
from pathlib import Path

import scaleot_core.bundle as bundle_package
from scaleot_core.bundle.contents import CODE_KEYS
from scaleot_core.bundle.manifest import FORMAT, MANIFEST_FILE, MANIFEST_TYPE, SUITE

SOURCES = Path(bundle_package.__file__).parent
DOCUMENT = (SOURCES / "FORMAT.md").read_text()
CODE = r"(?:bundle|grant|inner|object|key)\.[a-z]+"


def codes_in_the_sources() -> set[str]:
    text = "".join(path.read_text() for path in SOURCES.glob("*.py"))
    written_out = set(re.findall(rf'VerificationError\(\s*"({CODE})"', text))
    by_kind = {f"{kind}.{what}" for what in re.findall(r'f"\{kind\}\.([a-z]+)"', text) for kind in ("bundle", "grant")}
    return written_out | by_kind | {f"inner.{what}" for what in ("size", "json", "fields")}


def test_the_specification_lists_exactly_the_codes_that_exist() -> None:
    listed = set(re.findall(rf"`({CODE})`", DOCUMENT)) - {"config.json"}
    assert listed == codes_in_the_sources()


def test_the_specification_names_the_constants_of_the_code() -> None:
    for constant in (FORMAT, SUITE, MANIFEST_FILE, MANIFEST_TYPE, *(f"`{key}`" for key in CODE_KEYS)):
        assert constant in DOCUMENT


def test_the_examples_of_documents_are_json_with_sorted_keys() -> None:
    examples = re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)
    assert len(examples) == 4
    for example in examples:
        assert list(json.loads(example)) == sorted(json.loads(example))
