"""S05: one signature is not enough, whichever it is and however it was come by."""

import json
import shutil
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Root

from fl_server.repository_keys import public_keys, signers
from scaleot_core.bundle import SigningKey, generate_signing_key, load_signing_key
from scaleot_core.bundle.canonical import canonical_json
from scaleot_core.bundle.envelope import sign_statement
from scaleot_core.bundle.grant import GRANT_TYPE
from scaleot_core.bundle.manifest import MANIFEST_TYPE
from scaleot_core.bundle.repository import Role
from scaleot_core.errors import VerificationError
from tests.support.bundles import Scene, scene
from tests.support.owner_homes import new_data_owner_home, new_owner_home, publish_small_version, received


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


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model owner's home with version 1 published."""
    home = new_owner_home(tmp_path_factory.mktemp("s05") / "owner")
    publish_small_version(home)
    return home


def metadata_file(repository: Path, role: Role) -> Path:
    return repository / "metadata" / ("timestamp.json" if role is Role.TIMESTAMP else f"1.{role}.json")


def copied(published: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Returns a copy of the repository to attack, and a data owner's home that pinned its root."""
    home = tmp_path / "clinic"
    new_data_owner_home(published, home)
    return shutil.copytree(published / "repository", tmp_path / "repository"), home


@pytest.mark.parametrize("kept", ["ed25519", "ml-dsa"])
@pytest.mark.parametrize("role", [Role.TARGETS, Role.SNAPSHOT, Role.TIMESTAMP])
def test_s05_metadata_with_one_signature_stripped_is_refused(
    published: Path, tmp_path: Path, role: Role, kept: str
) -> None:
    repository, home = copied(published, tmp_path)
    root = Metadata[Root].from_file(str(metadata_file(repository, Role.ROOT))).signed
    path = metadata_file(repository, role)
    value = json.loads(path.read_bytes())
    value["signatures"] = [one for one in value["signatures"] if root.keys[one["keyid"]].keytype == kept]
    assert len(value["signatures"]) == 1
    path.write_bytes(json.dumps(value).encode())
    with pytest.raises(VerificationError, match=r"\[repository\.(signature|digest)\]"):
        received(home, repository)


def sign_with(path: Path, *keys: SigningKey) -> None:
    """Signs metadata anew with whatever keys the thief has, one version on."""
    metadata = Metadata.from_file(str(path))
    metadata.signed.version += 1
    metadata.signatures.clear()
    for key in keys:
        for signer in signers(key):
            metadata.sign(signer, append=True)
    path.write_bytes(metadata.to_bytes())


@pytest.mark.parametrize("stolen", ["ed25519", "mldsa65"])
def test_s05_a_timestamp_signed_by_one_stolen_key_is_refused(published: Path, tmp_path: Path, stolen: str) -> None:
    repository, home = copied(published, tmp_path)
    key, own = load_signing_key(published / "keys" / "timestamp-1.key"), generate_signing_key()
    thiefs = SigningKey(key.ed25519, own.mldsa65) if stolen == "ed25519" else SigningKey(own.ed25519, key.mldsa65)
    sign_with(repository / "metadata" / "timestamp.json", thiefs)
    with pytest.raises(VerificationError, match=r"timestamp was signed by 1/2 keys.*\[repository\.signature\]"):
        received(home, repository)


@pytest.mark.parametrize("stolen", ["ed25519", "mldsa65"])
def test_s05_a_root_that_names_the_thiefs_keys_needs_both_stolen_ones(
    published: Path, tmp_path: Path, stolen: str
) -> None:
    repository, home = copied(published, tmp_path)
    key, own = load_signing_key(published / "keys" / "root-1.key"), generate_signing_key()
    thiefs = SigningKey(key.ed25519, own.mldsa65) if stolen == "ed25519" else SigningKey(own.ed25519, key.mldsa65)
    metadata = Metadata[Root].from_file(str(metadata_file(repository, Role.ROOT)))
    for role in Role:
        for key_id in list(metadata.signed.roles[role].keyids):
            metadata.signed.revoke_key(key_id, role)
        for public in public_keys(thiefs):
            metadata.signed.add_key(public, role)
    path = repository / "metadata" / "2.root.json"
    path.write_bytes(metadata.to_bytes())
    sign_with(path, thiefs)
    with pytest.raises(VerificationError, match=r"root was signed by 1/2 keys.*\[repository\.signature\]"):
        received(home, repository)


def test_s05_two_signatures_of_one_kind_are_one(published: Path, tmp_path: Path) -> None:
    """The same signature twice, or under another key's id, does not make two."""
    for copy, change in enumerate(
        (
            lambda first, second: [first, first],
            lambda first, second: [first, {**first, "keyid": second["keyid"]}],
            lambda first, second: [{**second, "keyid": first["keyid"]}, {**first, "keyid": second["keyid"]}],
        )
    ):
        (tmp_path / str(copy)).mkdir()
        repository, home = copied(published, tmp_path / str(copy))
        path = repository / "metadata" / "timestamp.json"
        value = json.loads(path.read_bytes())
        value["signatures"] = change(*value["signatures"])
        path.write_bytes(json.dumps(value).encode())
        with pytest.raises(VerificationError, match=r"\[repository\.(signature|malformed)\]"):
            received(home, repository)
