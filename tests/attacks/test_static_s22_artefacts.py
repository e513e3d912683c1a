"""S22, as far as it can be read without a run: no key in repository, package or image, no secret with a repr.

What a run leaves behind is looked through elsewhere; here is what could never be taken back once it was given away.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sources import ROOT, SOURCES

KEY_BLOCK = re.compile(
    rb"-----BEGIN ([A-Z0-9]+ )*(PRIVATE|IDENTITY|SIGNING|SECRET)[A-Z0-9 -]*-----\r?\n[A-Za-z0-9+/=]{16}"
)
TEST_KEYS = re.compile(r"tests/golden/[a-z0-9-]+/TEST-ONLY-")
"""Golden files must open for ever, so the keys that open them are public, and say so in their names."""
SECRET_FIELD = re.compile(r"(^|_)(private_key|data_key|secret|passphrase|password|token)$")
SECRET_TYPES = re.compile(r"\b(bytes|DataKey|PrivateKey|EllipticCurvePrivateKey|str)\b")


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_s22_the_repository_holds_no_private_key_but_those_of_golden_files() -> None:
    files = tracked_files()
    assert len(files) > 200
    keys = [path.relative_to(ROOT).as_posix() for path in files if KEY_BLOCK.search(path.read_bytes())]
    assert [name for name in keys if not TEST_KEYS.match(name)] == []
    assert keys, "the search finds none, not even the golden files'"


def test_s22_the_repository_holds_no_home_and_no_database() -> None:
    forbidden = re.compile(r"\.(key|db|sqlite|pem|jsonl\.lock)$|(^|/)(owner\.pub|grant\.json|audit\.jsonl|ledger)$")
    names = [path.relative_to(ROOT).as_posix() for path in tracked_files()]
    assert [name for name in names if forbidden.search(name) and not name.startswith("tests/golden/")] == []


def secret_fields_with_a_repr(source: str) -> Iterator[str]:
    """Yields every field of a dataclass that holds a secret and would be printed with it."""
    for node in ast.walk(ast.parse(source)):
        decorators = "".join(map(ast.unparse, node.decorator_list)) if isinstance(node, ast.ClassDef) else ""
        if not isinstance(node, ast.ClassDef) or "dataclass" not in decorators or "repr=False" in decorators:
            continue
        for field in node.body:
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            is_secret = SECRET_FIELD.search(field.target.id) and SECRET_TYPES.search(ast.unparse(field.annotation))
            if is_secret and "repr=False" not in (ast.unparse(field.value) if field.value else ""):
                yield f"{node.name}.{field.target.id}"


@pytest.mark.parametrize("name", SOURCES)
def test_s22_a_secret_has_no_repr_that_a_log_could_print(name: str) -> None:
    assert list(secret_fields_with_a_repr(SOURCES[name])) == []


def test_the_search_for_secrets_with_a_repr_finds_one() -> None:
    source = "@dataclass(frozen=True)\nclass Credentials:\n    name: str\n    private_key: bytes\n"
    assert list(secret_fields_with_a_repr(source)) == ["Credentials.private_key"]
    assert list(secret_fields_with_a_repr(source.replace("bytes", "bytes = field(repr=False)"))) == []
    assert list(secret_fields_with_a_repr(source.replace("frozen=True", "repr=False"))) == []
