"""Key files: two PEM blocks in standard encodings, one for each half of a hybrid key.

Private halves are PKCS#8 (RFC 5958; RFC 8410 for Ed25519 and X25519, RFC 9881 for ML-DSA-65, RFC 9935 for
ML-KEM-768), public halves SubjectPublicKeyInfo; ``FORMAT.md`` has the table. Behind the blocks stands ``SHA-256:`` and
their digest, since most damaged bytes would make another key; a file without it is read too. Other text is ignored.
A private file is created with mode 0600 and is refused if anyone but its owner may touch it.
"""

import hashlib
import os
import re
import stat
from pathlib import Path
from secrets import token_bytes

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from scaleot_core.bundle.files import open_regular_file, write_new_file
from scaleot_core.bundle.keys import DATA_KEY_BYTES, DataKey, Identity, Recipient, SigningKey, VerifyingKey
from scaleot_core.errors import InputError, OutputError, VerificationError

MAX_KEY_FILE_BYTES = 64 * 1024
SECRET_BYTES = 32

_DIGEST_LINE = re.compile(rb"^SHA-256: (.*)$", re.MULTILINE)
_PEM_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


def save_signing_key(key: SigningKey, path: Path) -> None:
    """Writes a signing key to a new file with mode 0600; raises ``OutputError`` if the file exists."""
    write_new_file(path, _noted(_private_pem(key.ed25519), _private_pem(key.mldsa65)), mode=0o600)


def load_signing_key(path: Path) -> SigningKey:
    """Reads what ``save_signing_key`` wrote.

    Raises ``InputError`` if the file is missing, a symbolic link, another user's, or open to others, and
    ``VerificationError`` (``key.format``) if it holds anything else.
    """
    ed25519, mldsa65 = _load_private_halves(path)
    if not isinstance(ed25519, Ed25519PrivateKey) or not isinstance(mldsa65, MLDSA65PrivateKey):
        raise _unexpected_halves(path, "an Ed25519 and an ML-DSA-65 private key")
    return SigningKey(ed25519, mldsa65)


def save_verifying_key(key: VerifyingKey, path: Path) -> None:
    """Writes the public half of a signing key to a new file; raises ``OutputError`` if the file exists."""
    write_new_file(path, _noted(_public_pem(key.ed25519), _public_pem(key.mldsa65)), mode=0o644)


def load_verifying_key(path: Path) -> VerifyingKey:
    """Reads what ``save_verifying_key`` wrote; raises ``InputError`` or ``VerificationError`` (``key.format``)."""
    ed25519, mldsa65 = _load_public_halves(path)
    if not isinstance(ed25519, Ed25519PublicKey) or not isinstance(mldsa65, MLDSA65PublicKey):
        raise _unexpected_halves(path, "an Ed25519 and an ML-DSA-65 public key")
    return VerifyingKey(ed25519, mldsa65)


def save_identity(identity: Identity, path: Path) -> None:
    """Writes an identity to a new file with mode 0600; raises ``OutputError`` if the file exists."""
    write_new_file(path, _noted(_private_pem(identity.mlkem768), _private_pem(identity.x25519)), mode=0o600)


def load_identity(path: Path) -> Identity:
    """Reads what ``save_identity`` wrote; raises like ``load_signing_key``."""
    mlkem768, x25519 = _load_private_halves(path)
    if not isinstance(mlkem768, MLKEM768PrivateKey) or not isinstance(x25519, X25519PrivateKey):
        raise _unexpected_halves(path, "an ML-KEM-768 and an X25519 private key")
    return Identity(mlkem768, x25519)


def save_recipient(recipient: Recipient, path: Path) -> None:
    """Writes the public half of an identity to a new file; raises ``OutputError`` if the file exists."""
    write_new_file(path, _noted(_public_pem(recipient.mlkem768), _public_pem(recipient.x25519)), mode=0o644)


def load_recipient(path: Path) -> Recipient:
    """Reads what ``save_recipient`` wrote; raises ``InputError`` or ``VerificationError`` (``key.format``)."""
    mlkem768, x25519 = _load_public_halves(path)
    if not isinstance(mlkem768, MLKEM768PublicKey) or not isinstance(x25519, X25519PublicKey):
        raise _unexpected_halves(path, "an ML-KEM-768 and an X25519 public key")
    return Recipient(mlkem768, x25519)


def save_data_key(key: DataKey, path: Path) -> None:
    """Writes the 32 bytes of a data key to a new file with mode 0600; raises ``OutputError`` if the file exists."""
    write_new_file(path, key.secret, mode=0o600)


def load_data_key(path: Path) -> DataKey:
    """Reads what ``save_data_key`` wrote; raises like ``load_signing_key``."""
    secret = read_private_file(path)
    if len(secret) != DATA_KEY_BYTES:
        raise VerificationError("key.format", f"{path}: expected the {DATA_KEY_BYTES} bytes of a data key")
    return DataKey(secret)


def make_secret(path: Path) -> None:
    """Makes a file of 32 random bytes with mode 0600, unless it is there: those who start together share one.

    Raises ``OutputError`` if it cannot be written.
    """
    if path.exists():
        return
    try:
        write_new_file(path, token_bytes(SECRET_BYTES), mode=0o600)
    except OutputError:
        if not path.exists():
            raise


def _private_pem(key: Ed25519PrivateKey | MLDSA65PrivateKey | MLKEM768PrivateKey | X25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _public_pem(key: Ed25519PublicKey | MLDSA65PublicKey | MLKEM768PublicKey | X25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _load_private_halves(path: Path) -> tuple[PrivateKeyTypes, PrivateKeyTypes]:
    first, second = _pem_blocks(path, read_private_file(path), label=b"PRIVATE KEY")
    try:
        return load_pem_private_key(first, None), load_pem_private_key(second, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise VerificationError("key.format", f"{path}: expected two unencrypted PKCS#8 keys") from error


def _load_public_halves(path: Path) -> tuple[PublicKeyTypes, PublicKeyTypes]:
    try:
        with open_regular_file(path) as file:
            data = file.read(MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"key file {path} cannot be read: {error.strerror}") from error
    first, second = _pem_blocks(path, data, label=b"PUBLIC KEY")
    try:
        return load_pem_public_key(first), load_pem_public_key(second)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise VerificationError("key.format", f"{path}: expected two SubjectPublicKeyInfo keys") from error


def read_private_file(path: Path) -> bytes:
    """Returns the bytes of a private key file, at most one more than ``MAX_KEY_FILE_BYTES``.

    The checks are made on the open file, so it cannot be exchanged in between. Raises ``InputError`` if it is missing,
    a symbolic link, another user's, or open to others.
    """
    try:
        file = open_regular_file(path, flags=os.O_NOFOLLOW)
    except OSError as error:
        hint = "; it is a symbolic link: give the file itself" if path.is_symlink() else ""
        raise InputError(f"private key file {path} cannot be read: {error.strerror}{hint}") from error
    with file:
        status = os.fstat(file.fileno())
        if status.st_uid != os.geteuid():
            raise InputError(f"private key file {path} belongs to user {status.st_uid}, expected {os.geteuid()}")
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077:
            raise InputError(f"private key file {path} has mode {mode:04o}, expected 0600: run chmod 600 {path}")
        return file.read(MAX_KEY_FILE_BYTES + 1)


def _pem_blocks(path: Path, data: bytes, *, label: bytes) -> tuple[bytes, bytes]:
    blocks = list(_PEM_BLOCK.finditer(data))
    if len(data) > MAX_KEY_FILE_BYTES or [block[1] for block in blocks] != [label, label]:
        raise VerificationError("key.format", f"{path}: expected two PEM blocks {label.decode()!r} and no other")
    first, second = blocks[0][0], blocks[1][0]
    noted = _DIGEST_LINE.search(data, blocks[1].end())
    if noted is not None and noted[1] != _digest(first, second):
        raise VerificationError("key.format", f"{path} is damaged: its keys have another SHA-256. Bring back a copy")
    return first, second


def _noted(first: bytes, second: bytes) -> bytes:
    """Returns the content of a key file: both PEM blocks, each with its line break, and their digest."""
    return first + second + b"SHA-256: " + _digest(first.rstrip(), second.rstrip()) + b"\n"


def _digest(first: bytes, second: bytes) -> bytes:
    return hashlib.sha256(first + second).hexdigest().encode()


def _unexpected_halves(path: Path, expected: str) -> VerificationError:
    return VerificationError("key.format", f"{path}: expected {expected}, in this order, got other kinds of keys")
