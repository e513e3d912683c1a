import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from scaleot_core.bundle import generate_signing_key, read_bundle, seal_bundle, verify_bundle
from scaleot_core.bundle.canonical import Json
from scaleot_core.errors import InputError, OutputError
from tests.support.bundles import CANARY, END, FILES, MODEL, NOW, describe, object_name, scene, write_files

SEAL_SCRIPT = """
import sys, resource, datetime, pathlib
from scaleot_core.bundle import generate_signing_key, seal_bundle
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
end = datetime.datetime(2027, 5, 1, tzinfo=datetime.UTC)
seal_bundle(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), owner=generate_signing_key(), model={}, not_after=end)
"""


def seal(
    source: Path, destination: Path, *, model: dict[str, Json] = MODEL, version: int = 1, end: datetime = END
) -> None:
    seal_bundle(source, destination, owner=generate_signing_key(), model=model, version=version, not_after=end)


def test_a_bundle_has_a_signed_manifest_and_one_object_for_each_file_and_nothing_else(tmp_path: Path) -> None:
    made = scene(tmp_path)
    manifest = made.manifest()
    objects = sorted(path.name for path in (made.path / "objects").iterdir())
    assert objects == sorted(object_name(entry) for entry in manifest["objects"])
    assert sorted(path.name for path in made.path.iterdir()) == ["manifest.dsse.json", "objects"]
    for entry in manifest["objects"]:
        assert entry == describe((made.path / "objects" / object_name(entry)).read_bytes())


def test_what_is_reported_is_what_was_sealed(tmp_path: Path) -> None:
    made = scene(tmp_path)
    verified = verify_bundle(read_bundle(made.path), made.owner.public, now=NOW)
    assert (verified.bundle_id, verified.digest) == (made.sealed.bundle_id, made.sealed.digest)
    assert made.sealed.size_bytes == sum(path.stat().st_size for path in made.path.rglob("*") if path.is_file())
    assert verified.manifest.version == 1
    assert verified.manifest.not_after == END


def test_sealing_the_same_files_twice_gives_bundles_that_share_nothing(tmp_path: Path) -> None:
    first, second = scene(tmp_path / "1"), scene(tmp_path / "2")
    assert first.sealed.bundle_id != second.sealed.bundle_id
    assert not {object_name(one) for one in first.manifest()["objects"]} & {
        object_name(one) for one in second.manifest()["objects"]
    }


def test_no_plaintext_is_in_a_bundle(tmp_path: Path) -> None:
    made = scene(tmp_path)
    for path in made.path.rglob("*"):
        if path.is_file():
            assert CANARY[:16] not in path.read_bytes()


def test_the_source_is_left_as_it_was(tmp_path: Path) -> None:
    scene(tmp_path)
    source = tmp_path / "source"
    assert {
        path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*") if path.is_file()
    } == FILES


@pytest.mark.parametrize(
    "name",
    ["model.bin", "model.py", "pytorch_model.pt", ".hidden.json", "a b.json", "ü.json", "x", "Makefile", "a/b/c/d.txt"],
)
def test_a_source_with_a_file_that_no_data_owner_would_take_is_refused(tmp_path: Path, name: str) -> None:
    source = write_files(tmp_path / "source", {**FILES, name: b"x"})
    with pytest.raises(InputError, match=r"inner\.name"):
        seal(source, tmp_path / "sealed")
    assert not (tmp_path / "sealed").exists()


def test_a_configuration_that_names_code_is_refused(tmp_path: Path) -> None:
    source = write_files(tmp_path / "source", {"config.json": b'{"auto_map":{"AutoModel":"x.Y"}}'})
    with pytest.raises(InputError, match="auto_map"):
        seal(source, tmp_path / "sealed")


def test_links_and_pipes_in_the_source_are_refused(tmp_path: Path) -> None:
    for make in (lambda path: path.symlink_to("/etc/hostname"), lambda path: path.symlink_to("/etc"), os.mkfifo):
        source = write_files(tmp_path / "source", {"a.json": b"{}"})
        make(source / "b.json")
        with pytest.raises(InputError, match="not a regular file"):
            seal(source, tmp_path / "sealed")
        (source / "b.json").unlink()


def test_an_empty_or_missing_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no files"):
        seal(tmp_path / "empty", tmp_path / "sealed")
    with pytest.raises(InputError, match="not a directory"):
        seal(tmp_path / "missing", tmp_path / "sealed")


def nested(depth: int) -> Json:
    value: Json = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "model",
    [
        {"share": float("nan")},
        {"share": float("inf")},
        {"count": 2**53},
        {"count": 2.0**60},
        {"path": Path("x")},
        {"deep": nested(220)},  # more than the schema's parser reads, less than others write
        {"deep": nested(300)},
        {"deep": nested(5000)},
        {"long": "x" * (5 << 20)},
        {"long": "x" * (7 << 19)},
        {"set": {1}},
    ],
)
def test_a_model_description_that_could_not_be_read_back_is_refused(tmp_path: Path, model: dict[str, Json]) -> None:
    source = write_files(tmp_path / "source", FILES)
    with pytest.raises(InputError):
        seal(source, tmp_path / "sealed", model=model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize("version", [0, -1, 2**53])
def test_a_version_out_of_range_is_refused_and_nothing_is_left(tmp_path: Path, version: int) -> None:
    source = write_files(tmp_path / "source", FILES)
    with pytest.raises(InputError, match="version"):
        seal(source, tmp_path / "sealed", version=version)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_an_end_without_a_time_zone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="time zone"):
        seal(write_files(tmp_path / "source", FILES), tmp_path / "sealed", end=END.replace(tzinfo=None))


def test_an_existing_destination_is_not_touched(tmp_path: Path) -> None:
    made = scene(tmp_path)
    before = made.envelope.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        seal(tmp_path / "source", made.path)
    assert made.envelope.read_bytes() == before


def test_a_destination_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    source = write_files(tmp_path / "source", FILES)
    with pytest.raises(OutputError, match="cannot be written"):
        seal(source, tmp_path / "missing" / "sealed")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        seal(source, tmp_path / "file" / "sealed")


def test_a_disk_that_fills_up_leaves_nothing_half_written(tmp_path: Path) -> None:
    source = write_files(tmp_path / "source", {"a.txt": b"a", "emulator.safetensors": bytes(1 << 20)})
    command = [sys.executable, "-c", SEAL_SCRIPT, str(source), str(tmp_path / "sealed"), str(1 << 19)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "OutputError" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_killed_sealing_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "emulator.safetensors").open("wb") as file:
        file.truncate(1 << 30)  # a hole: no disk is used, but it takes about a second to encrypt
    command = [sys.executable, "-c", SEAL_SCRIPT, str(source), str(tmp_path / "sealed"), str(1 << 40)]
    with subprocess.Popen(command) as process:
        while not list(tmp_path.glob(".sealed.*.partial/objects/1.partial")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "sealed").exists()
    assert not list(tmp_path.glob("**/manifest.dsse.json"))


def test_the_description_is_only_in_the_encrypted_part(tmp_path: Path) -> None:
    made = scene(tmp_path, model={"secret-geometry": 42})
    assert "secret-geometry" not in json.dumps(made.manifest())
    assert b"secret-geometry" not in made.envelope.read_bytes()
