"""A small federation on disk that ``scaleot serve`` and ``scaleot join`` run as they are: a home for every side."""

import json
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.support.certificates import Authority
from tests.support.federations import build_federation, rewrite_data_owner


@dataclass(frozen=True)
class Deployed:
    owner_home: Path
    data_owner_homes: tuple[Path, ...]


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def build_deployment(root: Path, *, clients: int = 3, **changes: Any) -> Deployed:
    federation = build_federation(root, clients=clients, **changes)
    home = root / "home"
    home.mkdir(mode=0o700)
    federation.owner_directory.rename(home / "run")
    (home / "sealed").mkdir()
    shutil.copytree(root / "bundle", home / "sealed" / "1")
    fleet, distribution, superlink, *node_ports = free_ports(3 + clients)
    (home / "owner.toml").write_text(
        f'[serve]\nfleet = "127.0.0.1:{fleet}"\ndistribution = "127.0.0.1:{distribution}"\n'
        f"superlink_port = {superlink}\n"
    )
    authority = Authority(home / "authority")
    server = authority.issue("owner")
    server.certificate.rename(home / "authority/server.pem")
    server.private_key.rename(home / "authority/server.key")
    (home / "nodes").mkdir()
    homes = []
    for number, directory in enumerate(federation.data_owner_directories):
        own = directory.rename(root / f"clinic-{number}")
        rewrite_data_owner(own, f'bundle = "{root / "bundle"}"', 'bundle = "bundles/current"')
        with (own / "data-owner.toml").open("a") as file:
            file.write(f"node_port = {node_ports[number]}\n")
        tls = authority.issue(f"clinic-{number}")
        tls.certificate.rename(own / "tls.pem")
        tls.private_key.rename(own / "tls.key")
        shutil.copy(tls.authority, own / "authority.pem")
        key = generate_private_key(SECP384R1())
        (own / "node.key").touch(mode=0o600)
        (own / "node.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        (home / "nodes" / f"clinic-{number}.pub").write_bytes(public)
        (own / "federation.json").write_text(
            json.dumps({"fleet": f"127.0.0.1:{fleet}", "distribution": f"127.0.0.1:{distribution}"})
        )
        homes.append(own)
    return Deployed(home, tuple(homes))
