"""The keys that sign the repository's metadata: ``keys/<role>-<n>.key`` in the model owner's home, mode 0600.

Each is a signing key like the owner's own, of which TUF sees two: the Ed25519 half and the ML-DSA-65 half. Which
generation ``n`` counts is said by the root metadata alone, so a key that was made and never published counts for
nothing. The root's and the targets' may lie elsewhere, on a stick in a safe: they are read only by what needs them.
"""

from collections.abc import Iterator
from pathlib import Path

from securesystemslib.signer import CryptoSigner, SSlibKey

from scaleot_core.bundle import SigningKey, generate_signing_key, load_signing_key, save_signing_key
from scaleot_core.bundle.repository import Role
from scaleot_core.errors import InputError, OutputError

KEYS_DIRECTORY = "keys"


def make_key(home: Path, role: Role) -> SigningKey:
    """Makes the next key of a role and returns it once it is on the disk; raises ``OutputError``."""
    directory = home / KEYS_DIRECTORY
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{directory} cannot be made: {error.strerror}") from error
    number = max((int(path.stem.rpartition("-")[2]) for path in _key_files(home, role)), default=0) + 1
    key = generate_signing_key()
    save_signing_key(key, directory / f"{role}-{number}.key")
    return key


def first_key(home: Path, role: Role) -> SigningKey:
    """Returns the newest key of a role, and makes it where there is none; for a repository without a root."""
    files = sorted(_key_files(home, role))
    return load_signing_key(files[-1]) if files else make_key(home, role)


def key_in_force(home: Path, role: Role, key_ids: list[str]) -> SigningKey:
    """Returns the key of a role whose ids the root metadata lists.

    Raises:
        InputError: it is not in the home, or others may read it.
        VerificationError: a key file of this role is none.
    """
    for path in _key_files(home, role):
        key = load_signing_key(path)
        if {public.keyid for public in public_keys(key)} == set(key_ids):
            return key
    raise InputError(
        f"{home / KEYS_DIRECTORY} has no {role} key that the repository's root lists: bring back the file "
        f"{role}-<n>.key that was moved elsewhere"
    )


def public_keys(key: SigningKey) -> tuple[SSlibKey, SSlibKey]:
    """Returns both halves as TUF's metadata lists them."""
    return SSlibKey.from_crypto(key.public.ed25519), SSlibKey.from_crypto(key.public.mldsa65)


def signers(key: SigningKey) -> tuple[CryptoSigner, CryptoSigner]:
    """Returns what signs TUF's metadata with either half."""
    return CryptoSigner(key.ed25519), CryptoSigner(key.mldsa65)


def _key_files(home: Path, role: Role) -> Iterator[Path]:
    return (home / KEYS_DIRECTORY).glob(f"{role}-[0-9]*.key")
