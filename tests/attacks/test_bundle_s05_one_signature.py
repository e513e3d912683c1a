"""S05: one signature is not enough, whichever it is and however it was come by."""

import json
from pathlib import Path

import pytest

from scaleot_core.bundle import SigningKey, generate_signing_key
from scaleot_core.bundle.canonical import canonical_json
from scaleot_core.bundle.envelope import sign_statement
from scaleot_core.bundle.grant import GRANT_TYPE
from scaleot_core.bundle.manifest import MANIFEST_TYPE
from scaleot_core.errors import VerificationError
from tests.support.bundles import Scene, scene


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return scene(tmp_path_factory.mktemp("s05"))


@pytest.mark.parametrize("kept", [0, 1])
def test_a_manifest_with_one_signature_stripped_is_refused(tmp_path: Path, kept: int) -> None:
    made = scene(tmp_path)
    envelope = json.loads(made.envelope.read_bytes())
    envelope["signatures"] = [envelope["signatures"][kept]]
    made.envelope.write_bytes(canonical_json(envelope))
    with pytest.raises(VerificationError, match=r"bundle\.fields"):
        made.open()


def thief(made: Scene, stolen: str) -> SigningKey:
    own = generate_signing_key()
    return (
        SigningKey(made.owner.ed25519, own.mldsa65)
        if stolen == "ed25519"
        else SigningKey(own.ed25519, made.owner.mldsa65)
    )


def relabelled(envelope: bytes, made: Scene) -> bytes:
    """The thief claims that its own second key is the owner's."""
    value = json.loads(envelope)
    for signature, key_id in zip(value["signatures"], made.owner.public.key_ids, strict=True):
        signature["keyid"] = key_id
    return canonical_json(value)


@pytest.mark.parametrize("stolen", ["ed25519", "mldsa65"])
def test_a_manifest_signed_by_one_stolen_key_is_refused(tmp_path: Path, stolen: str) -> None:
    made = scene(tmp_path)
    forged = sign_statement(canonical_json(made.manifest()), MANIFEST_TYPE, thief(made, stolen))
    for envelope in (forged, relabelled(forged, made)):
        made.envelope.write_bytes(envelope)
        with pytest.raises(VerificationError, match=r"bundle\.signature"):
            made.open()


@pytest.mark.parametrize("stolen", ["ed25519", "mldsa65"])
def test_a_grant_signed_by_one_stolen_key_is_refused(made: Scene, stolen: str) -> None:
    statement = b'{"type":"scaleot.grant/1"}'
    forged = sign_statement(statement, GRANT_TYPE, thief(made, stolen))
    for grant in (forged, relabelled(forged, made)):
        with pytest.raises(VerificationError, match=r"grant\.signature"):
            made.open(grant=grant)
