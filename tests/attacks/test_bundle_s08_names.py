"""S08: names and settings inside a bundle lead nowhere and start nothing, even if the owner signed them."""

import json
from pathlib import Path

import pytest

from scaleot_core.bundle.archive import decrypt_manifest
from scaleot_core.bundle.canonical import Json, canonical_json
from scaleot_core.bundle.contents import CODE_KEYS
from scaleot_core.bundle.manifest import check_file_names, read_outer_manifest
from scaleot_core.errors import VerificationError
from tests.support.bundles import (
    FILES,
    Scene,
    describe,
    encrypt,
    object_name,
    replace_inner,
    replace_inner_bytes,
    resign,
    scene,
)

HOSTILE_NAMES = [
    "../evil.json",
    "../../etc/passwd.txt",
    "/etc/passwd.txt",
    "a/../../b.json",
    "a/./b.json",
    "./a.json",
    "a//b.json",
    "a/",
    "..",
    ".",
    "",
    "a\\b.json",
    "C:\\a.json",
    "C:a.json",
    "a\x00.json",
    "a.json\n",
    "\na.json",
    ".hidden.json",
    "a/.hidden.json",
    "-rf.json",
    "model.py",
    "pytorch_model.bin",
    "model.pt",
    "model.pkl",
    "model.json.py",
    "model.safetensors.index",
    "MODEL.JSON",
    "a.so",
    "a/b/c/d.json",
    "ä.json",
    "a b.json",
    "$(id).json",
    "\u202etxt.json",
    "a" * 129 + ".json",
]


@pytest.fixture
def made(tmp_path: Path) -> Scene:
    return scene(tmp_path)


def inner(made: Scene) -> dict[str, Json]:
    manifest = decrypt_manifest(read_outer_manifest(canonical_json(made.manifest())), made.sealed.data_key)
    value: dict[str, Json] = manifest.model_dump(mode="json")
    return value


def refusal(made: Scene) -> str:
    before = sorted(made.path.parent.rglob("*"))
    with pytest.raises(VerificationError) as caught:
        made.open()
    assert sorted(made.path.parent.rglob("*")) == before
    return caught.value.code


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_hostile_file_name_is_refused_and_nothing_is_written(made: Scene, name: str) -> None:
    changed = inner(made)
    changed["files"][0]["name"] = name
    replace_inner(made, changed)
    assert refusal(made) == "inner.name"


@pytest.mark.parametrize("pair", [("a.json", "a.json"), ("a.json", "A.json"), ("a/b.txt", "A/b.txt")])
def test_two_files_that_could_be_taken_for_one_another_are_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(VerificationError, match=r"inner\.name"):
        check_file_names(list(pair))


@pytest.mark.parametrize("key", sorted(CODE_KEYS))
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "sub/generation_config.json"])
def test_a_configuration_that_names_code_is_refused(tmp_path: Path, name: str, key: str) -> None:
    made = scene(tmp_path, {name: b'{"a":"' + b"x" * len(key) + b'"}'})
    forge(made, 1, json.dumps({key: "x"}).encode())
    assert refusal(made) == "inner.config"


@pytest.mark.parametrize(
    "config",
    [
        b'{"sub":[{"deep":{"auto_map":{}}}]}',
        b'{"auto\\u005fmap":{}}',
        b'{"a":{"auto_map":1},"a":{}}',
        b'[{"trust_remote_code":true}]',
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"a":"' + b"x" * (4 << 20) + b'"}',
    ],
    ids=["deep", "escaped", "hidden by a duplicate", "in a list", "no JSON", "no text", "nested", "over 4 MiB"],
)
def test_code_is_found_wherever_it_hides(tmp_path: Path, config: bytes) -> None:
    made = scene(tmp_path, {"config.json": b"{}"})
    forge(made, 1, config)
    assert refusal(made) == "inner.config"


def forge(made: Scene, index: int, content: bytes) -> None:
    """Seals other contents under a file's name, all signed by the owner: what ``seal_bundle`` itself refuses to do."""
    ciphertext = encrypt(made, index, content)
    changed = inner(made)
    changed["files"][index - 1] |= {"size": len(content)}
    (made.path / "objects" / object_name(describe(ciphertext))).write_bytes(ciphertext)
    resign(made, lambda manifest: manifest["objects"].__setitem__(index - 1, describe(ciphertext)))
    replace_inner(made, changed)


def test_the_forgery_itself_is_good(made: Scene) -> None:
    forge(made, 1, b'{"model_type":"opt"}')
    assert made.open() == {**FILES, "config.json": b'{"model_type":"opt"}'}


@pytest.mark.parametrize("count", [1001, 10_001])
def test_too_many_files_are_refused(made: Scene, count: int) -> None:
    changed = inner(made)
    changed["files"] = [
        {**changed["files"][0], "name": f"f{index}.txt", "object": index} for index in range(1, count + 1)
    ]
    replace_inner(made, changed)
    assert refusal(made) in {"inner.fields", "bundle.size"}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda value: value["files"].pop(), "inner.objects"),
        (lambda value: value["files"].reverse(), "inner.objects"),
        (lambda value: value["files"][0].update(object=2), "inner.objects"),
        (lambda value: value["files"][0].update(object=1000), "inner.objects"),
        (lambda value: value["files"][0].update(size=0), "inner.objects"),
        (lambda value: value["files"][0].update(size=2**53 - 1), "inner.objects"),
        (lambda value: value["files"][0].update(object=0), "inner.fields"),
        (lambda value: value["files"][0].update(object=-1), "inner.fields"),
        (lambda value: value["files"][0].update(object=True), "inner.fields"),
        (lambda value: value["files"][0].update(object="1"), "inner.fields"),
        (lambda value: value["files"][0].update(name=1), "inner.fields"),
        (lambda value: value["files"][0].update(mode=0o777), "inner.fields"),
        (lambda value: value["files"][0].pop("size"), "inner.fields"),
        (lambda value: value["files"].clear(), "inner.fields"),
        (lambda value: value.update(model=[]), "inner.fields"),
        (lambda value: value.update(extra=1), "inner.fields"),
        (lambda value: value.pop("model"), "inner.fields"),
    ],
)
def test_an_inner_manifest_that_does_not_fit_is_refused(made: Scene, change: object, code: str) -> None:
    changed = inner(made)
    change(changed)  # type: ignore[operator]
    replace_inner(made, changed)
    assert refusal(made) == code


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"files":[],"model":{}} ', b"\xff", b"[" * 50_000, b"null"])
def test_an_inner_manifest_that_is_no_manifest_is_refused(made: Scene, data: bytes) -> None:
    replace_inner_bytes(made, data)
    assert refusal(made) in {"inner.json", "inner.fields"}


def test_an_inner_manifest_of_another_key_is_refused(made: Scene) -> None:
    resign(made, lambda manifest: manifest.__setitem__("inner", "AAAA" * 100))
    assert refusal(made) == "object.decrypt"
