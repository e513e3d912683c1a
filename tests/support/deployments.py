"""A small federation on disk that ``scaleot serve`` and ``scaleot join`` run as they are: a home for every side."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import tomli_w

from fl_clients.acceptance import accept, read_own_admission
from fl_clients.data_owner_home import DataOwnerHome, create_data_owner_home
from fl_server.data import read_data
from fl_server.enrolment import Addresses, approve
from fl_server.grants import issue_grants
from fl_server.owner_home import OwnerHome, create_owner_home
from fl_server.registry import Registry
from fl_server.repository import create_repository, publish
from fl_server.sealing import seal_version
from scaleot_core.bundle import load_signing_key
from scaleot_core.config import to_toml
from scaleot_core.enrolment.request import read_request
from scaleot_core.progress import SilentReporter
from scaleot_core.run_file import RunFile
from scaleot_core.training.data import Record, write_records
from tests.support.tiny_task import tiny_run, write_task


@dataclass(frozen=True)
class Deployed:
    run: RunFile
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


def build_deployment(root: Path, *overrides: str) -> Deployed:
    """Makes the homes of ``tiny_run``'s federation, whose data owners are called as in a simulation."""
    fleet, distribution, superlink, *node_ports = free_ports(3 + 3)
    run = tiny_run(
        write_task(root),
        f"serve.fleet=127.0.0.1:{fleet}",
        f"serve.distribution=127.0.0.1:{distribution}",
        f"serve.superlink_port={superlink}",
        *overrides,
    )
    now, home = datetime.now(UTC), root / "owner"
    create_owner_home(home, [], now=now)
    (home / "owner.toml").write_text(to_toml(run))
    create_repository(home, now=now)
    owner = load_signing_key(home / "owner.key")
    sealed = seal_version(run, home, owner=owner, lifetime=timedelta(days=30), reporter=SilentReporter())
    publish(home, sealed, now=datetime.now(UTC))
    partitions = read_data(run, SilentReporter()).partitions
    homes = tuple(
        _admit(home, root / f"data-owner-{number}", run, records, node_ports[number])
        for number, records in enumerate(partitions)
    )
    issue_grants(home, {member.name: member.recipient for member in Registry(home / "organisations.jsonl").members()})
    return Deployed(run, home, homes)


def _admit(owner_home: Path, home: Path, run: RunFile, records: Sequence[Record], node_port: int) -> Path:
    own = {"organisation": home.name, "data": "train.jsonl", "device": "cpu", "node_port": node_port}
    request = create_data_owner_home(home, home.name, own_file=tomli_w.dumps(own), now=datetime.now(UTC))
    write_records(home / "train.jsonl", records)
    addresses = Addresses(run.serve.distribution, run.serve.fleet)
    now = datetime.now(UTC)
    envelope = approve(OwnerHome(owner_home), read_request(request), addresses, max_examples=1_000_000, now=now)
    accept(DataOwnerHome(home), read_own_admission(DataOwnerHome(home), envelope), now=now)
    return home
