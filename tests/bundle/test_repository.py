import pytest

from scaleot_core.bundle.repository import Role, is_repository_file, metadata_file, target_file


@pytest.mark.parametrize("role", list(Role))
def test_every_file_that_is_named_is_a_file_of_the_repository(role: Role) -> None:
    assert is_repository_file(metadata_file(role, 12))


def test_the_target_is_a_file_of_the_repository() -> None:
    assert is_repository_file(target_file("0" * 64))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "metadata/",
        "metadata/root.json",
        "metadata/0.root.json",
        "metadata/01.root.json",
        "metadata/1.timestamp.json",
        "metadata/../owner.key",
        "metadata/1.root.json\n",
        "/metadata/1.root.json",
        "targets/emulator/manifest.json",
        f"targets/emulator/{'G' * 64}.manifest.json",
        f"targets/../{'0' * 64}.manifest.json",
        "keys/root-1.key",
        "objects/" + "0" * 64,
    ],
)
def test_no_other_name_is(name: str) -> None:
    assert not is_repository_file(name)
