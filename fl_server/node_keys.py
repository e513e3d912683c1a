"""The node keys of the approved organisations, as the registry has them now."""

from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key


def approved_nodes(home: Path) -> dict[str, str]:
    """Returns the OpenSSH public key of every approved organisation's node, by name."""
    return {path.stem: path.read_text() for path in sorted((home / "nodes").glob("*.pub"))}


class ApprovedNodes:
    """The approved organisations by their node's key, read again when it changes."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def __call__(self) -> Mapping[bytes, str]:
        """Returns the organisations by the key as ``SubjectPublicKeyInfo`` in DER."""
        return {_der(line): name for name, line in approved_nodes(self._home).items()}


def _der(line: str) -> bytes:
    return load_ssh_public_key(line.encode()).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
