import json
from pathlib import Path

import pytest

from scaleot_core.bundle.canonical import Json, canonical_json
from scaleot_core.bundle.manifest import SealedObject, check_file_names, read_outer_manifest
from scaleot_core.errors import VerificationError
from tests.support.bundles import object_name, scene

OUTER: dict[str, Json] = {
    "block_size": 16777216,
    "bundle_id": "0123456789abcdef" * 2,
    "format": "scaleot.sealed/2",
    "inner": "AAAA",
    "not_after": "2027-05-01T00:00:00+00:00",
    "objects": [{"blocks": ["0" * 64], "size": 100}],
    "suite": "hpke-xwing-hkdfsha256-aes256gcm+cobblestone-256",
    "version": 1,
}


def outer_refusal(value: Json) -> str:
    with pytest.raises(VerificationError) as caught:
        read_outer_manifest(canonical_json(value))
    return caught.value.code


def test_the_example_of_the_specification_is_read() -> None:
    manifest = read_outer_manifest(canonical_json(OUTER))
    assert manifest.bundle_id == OUTER["bundle_id"]
    assert manifest.objects[0].size == 100


@pytest.mark.parametrize("name", sorted(set(OUTER) - {"format"}))
def test_a_missing_field_is_refused(name: str) -> None:
    assert outer_refusal({key: OUTER[key] for key in OUTER if key != name}) == "bundle.fields"


def test_an_unknown_field_is_refused_at_every_depth() -> None:
    assert outer_refusal({**OUTER, "licence": "x"}) == "bundle.fields"
    assert outer_refusal({**OUTER, "objects": [{**OUTER["objects"][0], "name": "x"}]}) == "bundle.fields"


@pytest.mark.parametrize("value", ["scaleot.sealed/1", "scaleot.sealed/3", "", None, 1, ["scaleot.sealed/2"]])
def test_an_unknown_format_is_named_as_such(value: Json) -> None:
    assert outer_refusal({**OUTER, "format": value}) == "bundle.format"


@pytest.mark.parametrize("value", [[], "x", 1, None, {}])
def test_a_manifest_of_another_shape_is_refused(value: Json) -> None:
    assert outer_refusal(value) == "bundle.format"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("block_size", 16777215),
        ("block_size", "16777216"),
        ("bundle_id", "0123456789ABCDEF" * 2),
        ("bundle_id", "0" * 31),
        ("bundle_id", "0" * 32 + "\n"),
        ("inner", "A"),
        ("inner", "AAA=AAAA"),
        ("inner", "AAA\n"),
        ("inner", ["AAAA"]),
        ("not_after", 1800000000),
        ("suite", "hpke-x25519+cobblestone-128"),
        ("version", 0),
        ("version", -1),
        ("version", True),
        ("version", "1"),
        ("version", 1.5),
        ("objects", []),
        ("objects", {}),
        ("objects", [OUTER["objects"][0]] * 1001),
        ("objects", [None]),
    ],
)
def test_a_field_of_another_type_or_range_is_refused(name: str, value: Json) -> None:
    assert outer_refusal({**OUTER, name: value}) == "bundle.fields"


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"size": -1},
        {"size": 16777217},
        {"size": 100.5},
        {"size": True},
        {"blocks": []},
        {"blocks": ["0" * 64] * 2},
        {"blocks": ["0" * 63]},
        {"blocks": [0]},
        {"blocks": ["../" + "0" * 61]},
        {"blocks": ["A" * 64]},
    ],
)
def test_an_object_whose_blocks_do_not_cover_its_size_or_that_is_misspelt_is_refused(change: dict[str, Json]) -> None:
    assert outer_refusal({**OUTER, "objects": [{**OUTER["objects"][0], **change}]}) == "bundle.fields"


def test_an_object_is_named_after_its_size_and_every_block_in_order() -> None:
    blocks = ("12" * 32, "ab" * 32)
    entry: dict[str, Json] = {"blocks": blocks, "size": 16777217}
    name = SealedObject(**entry).name
    assert name == object_name(entry)
    others = ({"size": 16777218}, {"blocks": blocks[::-1]}, {"blocks": (blocks[0], "ac" * 32)})
    names = [SealedObject(**{**entry, **other}).name for other in others]
    assert len({name, *names}) == 4


def test_every_prefix_of_a_manifest_is_refused() -> None:
    data = canonical_json(OUTER)
    for length in range(len(data)):
        with pytest.raises(VerificationError):
            read_outer_manifest(data[:length])


def test_a_manifest_over_four_mebibytes_is_refused() -> None:
    assert outer_refusal({**OUTER, "inner": "AAAA" * (1 << 20)}) == "bundle.size"


@pytest.mark.parametrize("name", ["config.json", "emulator.safetensors", "a/b/c.txt", "_x.json", "A-1.b.json", "0.txt"])
def test_plain_data_files_may_have_their_names(name: str) -> None:
    check_file_names([name])


def test_the_outer_manifest_shows_nothing_of_the_inside(tmp_path: Path) -> None:
    shown = json.dumps(scene(tmp_path).manifest())
    for secret in ("config", "emulator", "safetensors", "adapter", "removed_rank_share", "llama", "Klinik"):
        assert secret not in shown
