"""S03: who may open a bundle, and so knows its data key, still cannot put other weights into it."""

from pathlib import Path

import pytest

from scaleot_core.bundle import open_bundle, read_bundle, verify_bundle, verify_objects
from scaleot_core.errors import VerificationError
from tests.support.bundles import CLINIC, NOW, describe, encrypt, object_name, scene

EVIL = b"other-7f3a-weights-of-the-insider-xxx"


def test_an_object_encrypted_anew_with_the_data_key_is_refused_before_it_is_decrypted(tmp_path: Path) -> None:
    made = scene(tmp_path)
    path = made.object_file(2)
    forged = encrypt(made, 2, EVIL * 2000)
    assert len(forged) == path.stat().st_size
    path.write_bytes(forged)
    with pytest.raises(VerificationError, match=r"object\.block"):
        verify_objects(verify_bundle(read_bundle(made.path), made.owner.public, now=NOW))
    with pytest.raises(VerificationError, match=r"object\.block"):
        made.open()


def test_an_object_exchanged_between_verification_and_opening_is_refused_too(tmp_path: Path) -> None:
    made = scene(tmp_path)
    verified = verify_bundle(read_bundle(made.path), made.owner.public, now=NOW)
    made.object_file(2).write_bytes(encrypt(made, 2, EVIL * 2000))
    with pytest.raises(VerificationError, match=r"object\.block"):
        open_bundle(verified, made.grant, made.identity, organisation=CLINIC, now=NOW)


def test_an_object_the_manifest_does_not_name_is_not_used(tmp_path: Path) -> None:
    made = scene(tmp_path)
    forged = encrypt(made, 2, EVIL * 2000)
    (made.path / "objects" / object_name(describe(forged))).write_bytes(forged)
    assert EVIL not in made.open()["emulator.safetensors"]
