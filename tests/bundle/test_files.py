from pathlib import Path

import pytest

from scaleot_core.bundle.files import new_directory, read_small_file, write_new_file
from scaleot_core.errors import InputError, OutputError


def test_a_directory_appears_only_when_its_block_has_ended_well(tmp_path: Path) -> None:
    destination = tmp_path / "made"
    with new_directory(destination) as building:
        (building / "file").write_text("x")
        assert not destination.exists()
    assert (destination / "file").read_text() == "x"
    assert list(tmp_path.iterdir()) == [destination]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    with pytest.raises(failure), new_directory(tmp_path / "made") as building:
        (building / "file").write_text("x")
        raise failure
    assert list(tmp_path.iterdir()) == []


def test_an_existing_destination_is_left_as_it_is(tmp_path: Path) -> None:
    for make in (Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")):
        destination = tmp_path / "made"
        make(destination)
        with pytest.raises(OutputError, match="exists already"), new_directory(destination):
            pytest.fail("the block must not run")
        destination.rmdir() if destination.is_dir() else destination.unlink()


def test_a_destination_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    destination = tmp_path / "made"
    with pytest.raises(OutputError, match="cannot be written"), new_directory(destination):
        destination.mkdir()
        (destination / "other").write_text("x")
    assert (destination / "other").read_text() == "x"
    assert list(tmp_path.iterdir()) == [destination]


def test_a_new_file_never_replaces_another(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_new_file(path, b"first", mode=0o600)
    with pytest.raises(OutputError, match="exists already"):
        write_new_file(path, b"second", mode=0o600)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_small_file_is_read_to_one_byte_over_its_limit_and_nothing_else_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_small_file(tmp_path / "file", 5) == b"12345"
    assert read_small_file(tmp_path / "file", 3) == b"1234"
    for path, fault in ((tmp_path / "none", "No such file"), (tmp_path, "not a regular file")):
        with pytest.raises(InputError, match=f"{path} cannot be read: {fault}"):
            read_small_file(path, 5)
