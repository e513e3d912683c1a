"""A model owner, a data owner and a small sealed bundle between them, and ways to forge what the owner would not."""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from cryptography.cobblestone import Cobblestone256Encryptor

from scaleot_core.bundle import (
    Identity,
    SealedBundle,
    SigningKey,
    generate_identity,
    generate_signing_key,
    issue_grant,
    open_bundle,
    read_bundle,
    seal_bundle,
    verify_bundle,
)
from scaleot_core.bundle.canonical import Json, canonical_json
from scaleot_core.bundle.envelope import sign_statement, verify_statement
from scaleot_core.bundle.manifest import (
    BLOCK_BYTES,
    MANIFEST_FILE,
    MANIFEST_TYPE,
    MAX_ENVELOPE_BYTES,
    OBJECTS_DIRECTORY,
    SealedObject,
    object_context,
)

NOW = datetime(2027, 1, 1, 12, 0, 0, tzinfo=UTC)
END = datetime(2027, 5, 1, tzinfo=UTC)
CLINIC = "Klinik Süd"
CANARY = b"canary-7f3a-plaintext-of-the-emulator"
MODEL = {"layers": [{"index": 0, "role": "adapter"}], "removed_rank_share": 0.8}
FILES = {
    "config.json": b'{"model_type":"llama"}',
    "emulator.safetensors": CANARY * 2000,
    "notes/readme.txt": b"",
}


@dataclass(frozen=True)
class Scene:
    """Everything needed to open one bundle, and to attack it with the owner's or an insider's own means."""

    owner: SigningKey
    identity: Identity
    sealed: SealedBundle
    grant: bytes

    @property
    def path(self) -> Path:
        return self.sealed.path

    @property
    def envelope(self) -> Path:
        return self.path / MANIFEST_FILE

    def manifest(self) -> dict[str, Json]:
        statement = verify_statement(
            self.envelope.read_bytes(), MANIFEST_TYPE, self.owner.public, kind="bundle", limit_bytes=MAX_ENVELOPE_BYTES
        )
        value: dict[str, Json] = json.loads(statement)
        return value

    def object_file(self, index: int) -> Path:
        return self.path / OBJECTS_DIRECTORY / object_name(self.manifest()["objects"][index - 1])

    def open(
        self, *, grant: bytes | None = None, identity: Identity | None = None, now: datetime = NOW
    ) -> dict[str, bytes]:
        """Goes the whole way of a data owner and returns the files' contents."""
        verified = verify_bundle(read_bundle(self.path), self.owner.public, now=now)
        identity = self.identity if identity is None else identity
        grant = self.grant if grant is None else grant
        with open_bundle(verified, grant, identity, organisation=CLINIC, now=now) as opened:
            return {name: path.read_bytes() for name, path in opened.files.items()}


def write_files(directory: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return directory


def scene(directory: Path, files: Mapping[str, bytes] = FILES, model: Mapping[str, Json] = MODEL) -> Scene:
    """Seals ``files`` under ``directory`` and grants them to one clinic."""
    owner, identity = generate_signing_key(), generate_identity()
    source = write_files(directory / "source", files)
    sealed = seal_bundle(source, directory / "sealed", owner=owner, model=model, not_after=END)
    grant = issue_grant(sealed, owner=owner, organisation=CLINIC, recipient=identity.recipient, not_after=END)
    return Scene(owner, identity, sealed, grant)


def resign(of: Scene, change: Callable[[dict[str, Json]], None]) -> None:
    """Changes the outer manifest and signs it again: what a careless or hostile owner could publish."""
    manifest = of.manifest()
    change(manifest)
    of.envelope.write_bytes(sign_statement(canonical_json(manifest), MANIFEST_TYPE, of.owner))


def encrypt(of: Scene, index: int, plaintext: bytes) -> bytes:
    """Encrypts as anyone can who knows the data key: the owner, and every recipient."""
    encryptor = Cobblestone256Encryptor(of.sealed.data_key.secret, object_context(of.sealed.bundle_id, index))
    return encryptor.update(plaintext) + encryptor.finalize()


def describe(ciphertext: bytes) -> dict[str, Json]:
    """Returns the outer manifest's entry for a ciphertext, computed the plain way."""
    blocks = [ciphertext[start : start + BLOCK_BYTES] for start in range(0, len(ciphertext), BLOCK_BYTES)]
    entry = SealedObject(
        blocks=tuple(sha256(block).hexdigest() for block in blocks),
        size=len(ciphertext),
    )
    value: dict[str, Json] = entry.model_dump(mode="json")
    return value


def object_name(entry: Mapping[str, Json]) -> str:
    """Returns an object's name by its entry in the outer manifest, computed the plain way."""
    told = sha256(b"scaleot.object/2\x00" + entry["size"].to_bytes(8, "big"))
    for digest in entry["blocks"]:
        told.update(bytes.fromhex(digest))
    return told.hexdigest()


def replace_object(of: Scene, index: int, ciphertext: bytes) -> None:
    """Puts another ciphertext in an object's place and has the owner sign it."""
    (of.path / OBJECTS_DIRECTORY / object_name(describe(ciphertext))).write_bytes(ciphertext)
    resign(of, lambda manifest: manifest["objects"].__setitem__(index - 1, describe(ciphertext)))


def replace_inner(of: Scene, inner: Json) -> None:
    """Puts another inner manifest in and has the owner sign it."""
    replace_inner_bytes(of, canonical_json(inner))


def replace_inner_bytes(of: Scene, data: bytes) -> None:
    """Puts any bytes in the inner manifest's place and has the owner sign them."""
    stream = base64.b64encode(encrypt(of, 0, data)).decode()
    resign(of, lambda manifest: manifest.__setitem__("inner", stream))
