"""The node keys of the approved organisations, as the registry has them now."""

from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from fl_server.registry import Registry, Status
from scaleot_core.errors import ScaleOTError


def approved_nodes(registry: Registry) -> dict[str, str]:
    """Returns the OpenSSH public key of every active organisation's node, by name.

    Raises:
        ChainError: the registry cannot be believed.
    """
    return {member.name: member.node_public_key for member in registry.members() if member.status is Status.ACTIVE}


class ApprovedNodes:
    """The active organisations by their node's key, as of each call."""

    def __init__(self, path: Path) -> None:
        self._registry = Registry(path)
        self._lines: dict[str, str] = {}
        self._nodes: Mapping[bytes, str] = {}

    def __call__(self) -> Mapping[bytes, str]:
        """Returns them by ``SubjectPublicKeyInfo`` in DER; none at all if the registry cannot be believed."""
        try:
            lines = approved_nodes(self._registry)
        except ScaleOTError:
            return {}
        if lines != self._lines:
            self._lines, self._nodes = lines, {_der(line): name for name, line in lines.items()}
        return self._nodes


def _der(line: str) -> bytes:
    return load_ssh_public_key(line.encode()).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
