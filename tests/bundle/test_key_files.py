import os
import stat
import threading
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaleot_core.bundle import (
    generate_identity,
    generate_signing_key,
    load_identity,
    load_recipient,
    load_signing_key,
    load_verifying_key,
    save_identity,
    save_recipient,
    save_signing_key,
    save_verifying_key,
)
from scaleot_core.bundle.key_files import SECRET_BYTES, make_secret
from scaleot_core.errors import InputError, OutputError, VerificationError

Load = Callable[[Path], object]
LOADERS: list[Load] = [load_signing_key, load_identity, load_verifying_key, load_recipient]
PRIVATE_LOADERS: list[Load] = [load_signing_key, load_identity]


def write_key(path: Path, data: bytes) -> Path:
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def saved(tmp_path: Path, loader: Load) -> Path:
    path = tmp_path / "key.pem"
    if loader is load_signing_key:
        save_signing_key(generate_signing_key(), path)
    elif loader is load_identity:
        save_identity(generate_identity(), path)
    elif loader is load_verifying_key:
        save_verifying_key(generate_signing_key().public, path)
    else:
        save_recipient(generate_identity().recipient, path)
    return path


def test_an_owner_key_is_read_back_and_is_the_same_key(tmp_path: Path) -> None:
    key = generate_signing_key()
    save_signing_key(key, tmp_path / "owner.pem")
    save_verifying_key(key.public, tmp_path / "owner.pub.pem")
    assert load_signing_key(tmp_path / "owner.pem").public == key.public
    assert load_verifying_key(tmp_path / "owner.pub.pem") == key.public


def test_an_identity_is_read_back_and_is_the_same_identity(tmp_path: Path) -> None:
    identity = generate_identity()
    save_identity(identity, tmp_path / "identity.pem")
    save_recipient(identity.recipient, tmp_path / "recipient.pem")
    assert load_identity(tmp_path / "identity.pem").recipient == identity.recipient
    assert load_recipient(tmp_path / "recipient.pem") == identity.recipient


@pytest.mark.parametrize("loader", PRIVATE_LOADERS)
def test_a_private_file_is_only_its_owners_whatever_the_umask(tmp_path: Path, loader: Load) -> None:
    before = os.umask(0)
    try:
        path = saved(tmp_path, loader)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o610, 0o601])
@pytest.mark.parametrize("loader", PRIVATE_LOADERS)
def test_a_private_file_that_others_may_touch_is_refused_and_the_message_says_what_to_do(
    tmp_path: Path, loader: Load, mode: int
) -> None:
    path = saved(tmp_path, loader)
    path.chmod(mode)
    with pytest.raises(InputError, match=f"has mode {mode:04o}, expected 0600: run chmod 600"):
        loader(path)


@pytest.mark.parametrize("loader", PRIVATE_LOADERS)
def test_a_private_file_behind_a_symbolic_link_is_refused(tmp_path: Path, loader: Load) -> None:
    link = tmp_path / "link.pem"
    link.symlink_to(saved(tmp_path, loader))
    with pytest.raises(InputError, match="symbolic link"):
        loader(link)


@pytest.mark.parametrize("loader", PRIVATE_LOADERS)
def test_a_pipe_or_a_directory_in_the_place_of_a_private_file_is_refused_at_once(tmp_path: Path, loader: Load) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "directory").mkdir(0o700)
    for name in ("pipe", "directory"):
        with pytest.raises(InputError, match="regular file"):
            loader(tmp_path / name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("loader", PRIVATE_LOADERS)
def test_a_private_file_of_another_user_is_refused(tmp_path: Path, loader: Load) -> None:
    path = saved(tmp_path, loader)
    os.chown(path, 12345, -1)
    with pytest.raises(InputError, match="belongs to user 12345"):
        loader(path)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_missing_file_is_an_input_error(tmp_path: Path, loader: Load) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        loader(tmp_path / "none.pem")


def test_an_existing_key_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "owner.pem"
    key = generate_signing_key()
    save_signing_key(key, path)
    with pytest.raises(OutputError, match="exists already"):
        save_signing_key(generate_signing_key(), path)
    assert load_signing_key(path).public == key.public
    assert list(tmp_path.iterdir()) == [path]


def test_a_key_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        save_signing_key(generate_signing_key(), tmp_path / "missing" / "owner.pem")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("loader", "other"), permutations(LOADERS, 2))
def test_a_key_of_another_kind_is_refused(tmp_path: Path, loader: Load, other: Load) -> None:
    path = saved(tmp_path, other)
    path.chmod(0o600)
    with pytest.raises(VerificationError, match=r"key\.format"):
        loader(path)


def pkcs8(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_files_with_the_wrong_blocks_are_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path, load_signing_key).read_bytes()
    half = pkcs8(Ed25519PrivateKey.generate())
    second = whole[whole.index(b"-----BEGIN", 1) :]
    encrypted = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    cases = [
        b"",
        half,
        half + half,
        second + half,
        whole + half,
        whole[:-40],
        encrypted + second,
        whole + b" " * 70_000,
    ]
    for data in cases:
        with pytest.raises(VerificationError, match=r"key\.format"):
            load_signing_key(write_key(tmp_path / "bad.pem", data))


def test_text_around_the_blocks_is_ignored(tmp_path: Path) -> None:
    whole = saved(tmp_path, load_signing_key).read_bytes()
    load_signing_key(write_key(tmp_path / "noted.pem", b"the key of 2027\n" + whole + b"\nend\n"))


@pytest.mark.parametrize("loader", LOADERS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_changed_key_file_gives_another_key_or_our_error_and_nothing_else(
    tmp_path: Path, loader: Load, data: st.DataObject
) -> None:
    tmp_path.joinpath("key.pem").unlink(missing_ok=True)
    whole = bytearray(saved(tmp_path, loader).read_bytes())
    start = data.draw(st.integers(0, len(whole) - 1))
    whole[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    try:
        loader(write_key(tmp_path / "changed.pem", bytes(whole)))
    except VerificationError as error:
        assert error.code == "key.format"


def test_those_who_start_together_make_one_secret_that_nobody_else_may_read(tmp_path: Path) -> None:
    path, seen, together = tmp_path / "secret", set(), threading.Barrier(8)

    def start() -> None:
        together.wait()
        make_secret(path)
        seen.add(path.read_bytes())

    threads = [threading.Thread(target=start) for _ in range(together.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (secret,) = seen
    assert len(secret) == SECRET_BYTES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
