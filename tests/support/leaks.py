"""Looks for secrets in whatever a run leaves behind: as they are, in hexadecimal, and in base64 wherever they begin."""

from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from scaleot_core.bundle import load_identity, load_signing_key


def spellings(secret: bytes) -> frozenset[bytes]:
    """Returns every text that holds a secret of at least 16 bytes, itself among them."""
    hexadecimal = secret.hex().encode()
    encoded = set()
    for shift in range(3):
        text = b64encode(bytes(shift) + secret)
        own = text[-(-8 * shift // 6) : (shift + len(secret)) // 3 * 4]  # what the neighbours have no part in
        encoded |= {own, own.replace(b"+", b"-").replace(b"/", b"_")}
    return frozenset({secret, hexadecimal, hexadecimal.upper(), *encoded})


def data_owner_secrets(home: Path) -> dict[str, bytes]:
    """Returns the private keys of a data owner's home, in raw bytes, by what people call them."""
    signing, identity = load_signing_key(home / "signing.key"), load_identity(home / "identity.key")
    secrets = {
        "Ed25519 signing key": signing.ed25519.private_bytes_raw(),
        "ML-DSA signing key": signing.mldsa65.private_bytes_raw(),
        "ML-KEM identity": identity.mlkem768.private_bytes_raw(),
        "X25519 identity": identity.x25519.private_bytes_raw(),
    }
    if (home / "node.key").exists():
        secrets["node key"] = _scalar(load_ssh_private_key((home / "node.key").read_bytes(), None))
        secrets["TLS key"] = _scalar(load_pem_private_key((home / "tls.key").read_bytes(), None))
    return {f"{home.name}: {name}": secret for name, secret in secrets.items()}


def files_below(*directories: Path) -> dict[str, bytes]:
    """Returns the content of every file that lies below, by its path."""
    paths = [path for directory in directories for path in directory.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in paths if not path.is_symlink()}


def leaks(secrets: Mapping[str, bytes], content: Mapping[str, bytes]) -> set[tuple[str, str]]:
    """Returns which secret stands where, in any spelling; a text that breaks its lines, as PEM does, hides nothing."""
    needles = [(name, spelling) for name, secret in secrets.items() for spelling in spellings(secret)]
    found = set()
    for where, held in content.items():
        unbroken = held.translate(None, b"\r\n")
        found |= {(name, where) for name, spelling in needles if spelling in held or spelling in unbroken}
    return found


def _scalar(key: object) -> bytes:
    assert isinstance(key, EllipticCurvePrivateKey)
    return key.private_numbers().private_value.to_bytes((key.key_size + 7) // 8, "big")
