"""Network addresses as people write them: ``host:port``."""

import ipaddress
from dataclasses import dataclass

from scaleot_core.errors import InputError

MAX_PORT = 65_535


@dataclass(frozen=True)
class Address:
    """A host, by name or number, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_address(text: str) -> Address:
    """Reads ``host:port``, an IPv6 host in brackets, the port 1 to 65535.

    Raises:
        InputError: it is something else.
    """
    host, colon, port = text.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if is_bracketed else host
    if not (colon and bare and port.isascii() and port.isdigit() and 1 <= int(port) <= MAX_PORT):
        raise InputError(f"expected host:port, such as 203.0.113.7:9443, got {text!r}")
    if (":" in bare) != is_bracketed or any(character.isspace() or character in "/@" for character in bare):
        raise InputError(f"expected host:port, an IPv6 host in brackets, got {text!r}")
    return Address(bare, int(port))
