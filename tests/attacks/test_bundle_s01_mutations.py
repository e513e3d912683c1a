"""S01: a bundle changed in any way, by a mirror or on the wire, is refused or opens to exactly what was sealed."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from scaleot_core.bundle.canonical import canonical_json
from scaleot_core.bundle.manifest import BLOCK_BYTES
from scaleot_core.errors import VerificationError
from tests.support.bundles import CANARY, FILES, Scene, scene

CHUNK = 16 * 1024 + 16
HEADER = 56


def flipped(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 1
    return bytes(changed)


def chunks_swapped(data: bytes) -> bytes:
    first, second, rest = (
        data[HEADER : HEADER + CHUNK],
        data[HEADER + CHUNK : HEADER + 2 * CHUNK],
        data[HEADER + 2 * CHUNK :],
    )
    return data[:HEADER] + second + first + rest


FIXED: dict[str, Callable[[bytes], bytes]] = {
    "first byte of the salt": lambda data: flipped(data, 0),
    "first byte of the key commitment": lambda data: flipped(data, 24),
    "first byte of the first chunk": lambda data: flipped(data, HEADER),
    "a byte in the middle": lambda data: flipped(data, len(data) // 2),
    "the last byte": lambda data: flipped(data, len(data) - 1),
    "two chunks swapped": chunks_swapped,
    "a chunk doubled": lambda data: data[: HEADER + CHUNK] + data[HEADER : HEADER + CHUNK] + data[HEADER + CHUNK :],
    "a chunk left out": lambda data: data[:HEADER] + data[HEADER + CHUNK :],
    "the last chunk left out": lambda data: data[: HEADER + 2 * CHUNK],
    "cut in a chunk": lambda data: data[:-7],
    "bytes added": lambda data: data + bytes(16),
    "emptied": lambda data: b"",
    "zeroed": lambda data: bytes(len(data)),
    "replaced by its plaintext": lambda data: (CANARY * 2000)[: len(data)],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return scene(tmp_path_factory.mktemp("s01"))


def opened_or_refused(made: Scene, grant: bytes | None = None) -> str:
    """Opens the bundle; anything but the sealed contents or our own error fails the test."""
    try:
        contents = made.open(grant=grant)
    except VerificationError as error:
        return error.code
    assert contents == FILES
    return "opened"


@pytest.mark.parametrize("mutation", FIXED)
def test_a_changed_object_is_refused(made: Scene, mutation: str) -> None:
    path = made.object_file(2)
    kept = path.read_bytes()
    path.write_bytes(FIXED[mutation](kept))
    try:
        assert opened_or_refused(made) in {"object.block", "object.size"}
    finally:
        path.write_bytes(kept)
    assert opened_or_refused(made) == "opened"


def test_objects_of_one_bundle_swapped_are_refused(made: Scene) -> None:
    first, second = made.object_file(1), made.object_file(2)
    kept = first.read_bytes(), second.read_bytes()
    first.write_bytes(kept[1])
    second.write_bytes(kept[0])
    try:
        assert opened_or_refused(made) == "object.size"
    finally:
        first.write_bytes(kept[0])
        second.write_bytes(kept[1])


def test_swapped_blocks_of_a_large_object_are_refused(tmp_path: Path) -> None:
    large = scene(tmp_path, {"emulator.safetensors": bytes(2 * BLOCK_BYTES)})
    path = large.object_file(1)
    data = path.read_bytes()
    path.write_bytes(data[BLOCK_BYTES : 2 * BLOCK_BYTES] + data[:BLOCK_BYTES] + data[2 * BLOCK_BYTES :])
    with pytest.raises(VerificationError, match=r"object\.block"):
        large.open()


def test_the_signed_manifest_of_another_bundle_of_the_same_owner_is_refused(made: Scene, tmp_path: Path) -> None:
    other = scene(tmp_path)
    kept = made.envelope.read_bytes()
    made.envelope.write_bytes(other.envelope.read_bytes())
    try:
        assert opened_or_refused(made) == "bundle.signature"  # here another owner's; its objects would be missing too
    finally:
        made.envelope.write_bytes(kept)


def mutate(generator: random.Random, data: bytes) -> bytes:
    """Returns ``data`` changed in one of six ways, as a faulty disk or a careless attacker would."""
    changed = bytearray(data)
    start, end = sorted((generator.randrange(len(data)), generator.randrange(len(data))))
    match generator.randrange(6):
        case 0:
            changed[start] ^= 1 << generator.randrange(8)
        case 1:
            del changed[start:]
        case 2:
            changed += generator.randbytes(generator.randrange(1, 40))
        case 3:
            del changed[start : start + generator.randrange(1, 50)]
        case 4:
            changed[start:start] = generator.randbytes(generator.randrange(1, 30))
        case _:
            changed[start : start + 16], changed[end : end + 16] = changed[end : end + 16], changed[start : start + 16]
    return bytes(changed)


def mutate_json(generator: random.Random, data: bytes) -> bytes:
    """Returns an envelope that is still canonical JSON, with one of its strings changed."""
    value = json.loads(data)
    place = generator.randrange(4)
    owner, field = (
        (value, "payload") if place < 2 else (value["signatures"][place - 2], generator.choice(["keyid", "sig"]))
    )
    owner[field] = mutate(generator, owner[field].encode()).decode(errors="replace")
    return canonical_json(value)


@pytest.mark.parametrize("target", ["objects", "manifest", "manifest as JSON", "grant", "grant as JSON"])
def test_two_thousand_random_mutations_never_open_to_other_contents(made: Scene, target: str) -> None:
    generator = random.Random(target)
    outcomes = []
    for _ in range(400):
        if target.startswith("grant"):
            grant = (mutate_json if "JSON" in target else mutate)(generator, made.grant)
            outcomes.append((grant == made.grant, opened_or_refused(made, grant)))
            continue
        path = made.object_file(generator.randrange(1, 4)) if target == "objects" else made.envelope
        kept = path.read_bytes()
        changed = (mutate_json if "JSON" in target else mutate)(generator, kept)
        path.write_bytes(changed)
        try:
            outcomes.append((changed == kept, opened_or_refused(made)))
        finally:
            path.write_bytes(kept)
    assert all(same == (outcome == "opened") for same, outcome in outcomes)
