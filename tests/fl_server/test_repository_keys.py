from pathlib import Path

import pytest

from fl_server.repository_keys import first_key, key_in_force, make_key, public_keys
from scaleot_core.bundle.repository import Role
from scaleot_core.errors import InputError


def ids(key: object) -> list[str]:
    return [public.keyid for public in public_keys(key)]  # type: ignore[arg-type]


def test_keys_are_numbered_by_role_and_only_their_owner_may_read_them(tmp_path: Path) -> None:
    for _ in range(2):
        make_key(tmp_path, Role.TARGETS)
    make_key(tmp_path, Role.ROOT)
    assert {path.name for path in (tmp_path / "keys").iterdir()} == {"targets-1.key", "targets-2.key", "root-1.key"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (tmp_path / "keys").iterdir())
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700


def test_the_root_says_which_key_counts_and_not_its_number(tmp_path: Path) -> None:
    first, second = make_key(tmp_path, Role.TARGETS), make_key(tmp_path, Role.TARGETS)
    for key in (first, second):
        assert ids(key_in_force(tmp_path, Role.TARGETS, ids(key))) == ids(key)
    with pytest.raises(InputError, match="no root key"):
        key_in_force(tmp_path, Role.ROOT, ids(first))


def test_a_first_key_is_made_once(tmp_path: Path) -> None:
    assert ids(first_key(tmp_path, Role.ROOT)) == ids(first_key(tmp_path, Role.ROOT))


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    key = make_key(tmp_path, Role.SNAPSHOT)
    (tmp_path / "keys" / "snapshot-1.key").chmod(0o644)
    with pytest.raises(InputError, match="has mode 0644, expected 0600"):
        key_in_force(tmp_path, Role.SNAPSHOT, ids(key))


def test_tuf_sees_two_keys_of_two_algorithms(tmp_path: Path) -> None:
    kinds = [public.keytype for public in public_keys(make_key(tmp_path, Role.ROOT))]
    assert kinds == ["ed25519", "ml-dsa"]
