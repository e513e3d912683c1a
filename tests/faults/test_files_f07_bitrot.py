"""Acceptance case F07: one bit of a file is turned, in every class of file that something is decided by.

Whoever reads it next either has exactly what was written (it was fetched, or written, anew, or the bit meant nothing),
or stops with one of our errors that names the file; a cached result that is damaged counts as none.
"""

import random
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from fl_clients.patient_source import PatientSource
from fl_clients.releases import Releases
from fl_clients.repository import newest_manifest
from fl_clients.sources import FolderSource
from fl_server.audit_log import AuditLog
from fl_server.blob_store import BlobStore
from fl_server.membership import read_members
from fl_server.owner import read_round_adapter, read_rounds, read_settings
from fl_server.registry import Registry
from fl_server.round_store import open_round_store
from fl_server.rounds import conduct_rounds
from fl_server.run_status import read_status
from scaleot_core.bundle import (
    generate_identity,
    generate_signing_key,
    load_identity,
    load_signing_key,
    load_verifying_key,
    save_identity,
    save_signing_key,
    save_verifying_key,
)
from scaleot_core.bundle.tls_files import read_tls_files
from scaleot_core.compression.importance import ImportanceReport
from scaleot_core.compression.importance_store import find_importance, save_importance
from scaleot_core.errors import ScaleOTError
from scaleot_core.federation.signing import verify_run_certificate
from scaleot_core.privacy.ledger_file import create_ledger
from scaleot_core.progress import SilentReporter
from tests.fl_clients.test_releases import UPDATE, instructions
from tests.support.certificates import Authority
from tests.support.fetching import parties
from tests.support.grids import owner_key, set_stage
from tests.support.importance import importance_settings
from tests.support.ledgers import NOW, RUN, TERMS, Place, gaussian
from tests.support.owner_homes import new_data_owner_home, new_owner_home, owner_of, publish_small_version

GOLDEN = Path(__file__).parents[1] / "golden"
BITS = 12
"""Of each file that are turned, one at a time."""


@dataclass(frozen=True)
class Record:
    """Files that hold something, and how it is read; what is read compares equal as long as it is the same."""

    files: Iterable[Path]
    read: Callable[[], object]
    name: str = ""
    """How an error names the file, where not by its own name."""


def registry(root: Path) -> Record:
    shutil.copytree(GOLDEN / "enrolment-1", root / "home")
    path = root / "home/organisations.jsonl"
    return Record((path, path.with_suffix(".head.json")), lambda: Registry(path).members(), name=path.name)


def audit_log(root: Path) -> Record:
    shutil.copytree(GOLDEN / "enrolment-1", root / "home")
    path = root / "home/audit.jsonl"
    return Record((path, path.with_suffix(".head.json")), lambda: AuditLog(path).events(), name=path.name)


def ledger(root: Path) -> Record:
    place = Place(root / "ledger", None)
    create_ledger(place.directory, TERMS, budget_epsilon=9.0, now=NOW)
    with place.open() as opened:
        opened.commit(opened.reserve(RUN, 1, [gaussian()], "adapter update", now=NOW), b"the release", now=NOW)

    def read() -> object:
        with place.open() as opened:
            return opened.head, opened.released(RUN, 1)

    return Record(
        [path for path in place.directory.rglob("*") if path.is_file() and path.suffix != ".lock"], read, name="ledger"
    )


def releases(root: Path) -> Record:
    kept = Releases(root / "releases")
    kept.keep(instructions(), UPDATE)
    return Record(list((root / "releases").glob("*/*/*")), lambda: kept.find(instructions()))


def rounds_database(root: Path) -> Record:
    directory = finished_run(root)

    def read() -> object:
        status = read_status(directory)
        with open_round_store(directory, "run-1") as store:
            every_round = [store.round(number) for number in (1, 2)]
            return status, every_round, store.records(), store.events(), store.undelivered("clinic-0")

    return Record([directory / "rounds.db"], read)


def blobs(root: Path) -> Record:
    digest = BlobStore(root).put(b"an adapter" * 100)
    return Record([root / "blobs" / digest], lambda: BlobStore(root).get(digest))


def run_files(root: Path) -> Record:
    directory, now = finished_run(root), datetime.now(UTC)
    names = (
        "federation.json",
        "members.json",
        "run.key",
        "run.certificate.json",
        "rounds.json",
        "adapter-1.safetensors",
    )

    def read() -> object:
        certificate = verify_run_certificate((directory / names[3]).read_bytes(), owner_key().public, now=now)
        (first, *_) = records = read_rounds(directory)
        adapter = {name: tensor.tolist() for name, tensor in read_round_adapter(directory, first).items()}
        members, key = read_members(directory / "members.json"), load_signing_key(directory / "run.key")
        return read_settings(directory), members, key.public, certificate, records, adapter

    return Record([directory / name for name in names], read, name="certificate")


def finished_run(root: Path) -> Path:
    stage = set_stage(root, clients=2, rounds=2)
    conduct_rounds(stage.exchange, root, SilentReporter())
    return root


def bundle_cache(root: Path) -> Record:
    two = parties(root)
    source = FolderSource(two.scene.path)

    def read() -> object:
        fetched = two.fetch(source)
        return two.open(fetched.path)

    read()
    return Record([path for path in two.place.rglob("*") if path.is_file()], read)


def repository_state(root: Path) -> Record:
    owner, home = new_owner_home(root / "owner"), root / "home"
    publish_small_version(owner)
    new_data_owner_home(owner, home)

    def read() -> object:
        source = PatientSource(FolderSource(owner / "repository"), deadline_seconds=10)
        return newest_manifest(source, home, owner=owner_of(owner).public, now=datetime.now(UTC)).signed

    read()
    return Record([path for path in (home / "repository").rglob("*.json") if path.is_file()], read, name="repository")


def keys(root: Path) -> Record:
    key, identity = generate_signing_key(), generate_identity()
    save_signing_key(key, root / "owner.key")
    save_verifying_key(key.public, root / "owner.pub")
    save_identity(identity, root / "identity.key")
    tls = Authority(root / "authority").issue("clinic-a")

    def read() -> object:
        loaded = (load_signing_key(root / "owner.key").public, load_verifying_key(root / "owner.pub"))
        return loaded, load_identity(root / "identity.key").recipient, read_tls_files(tls, now=datetime.now(UTC))

    files = [root / "owner.key", root / "owner.pub", root / "identity.key", tls.private_key]
    return Record(files, read, name="certificate")


def importance_store(root: Path) -> Record:
    report = ImportanceReport(
        scores=(1.5, -0.25),
        harmonizers={"0.up.weight": torch.arange(64.0).view(8, 8)},
        settings=importance_settings(),
        training_losses=(2.0, 1.0),
        history=(),
        seconds=3.0,
    )
    save_importance(report, root / "digest")

    def read() -> object:
        found = find_importance("digest", [root])
        return found and (found.to_json(), {name: tensor.tolist() for name, tensor in found.harmonizers.items()})

    return Record(list((root / "digest").iterdir()), read)


CLASSES = (
    registry,
    audit_log,
    ledger,
    releases,
    rounds_database,
    blobs,
    run_files,
    bundle_cache,
    repository_state,
    keys,
    importance_store,
)


@pytest.mark.parametrize("make", CLASSES, ids=lambda make: make.__name__)
def test_f07_a_turned_bit_is_found_or_mended_and_never_believed(tmp_path: Path, make: Callable[[Path], Record]) -> None:
    record, draw = make(tmp_path), random.Random(7)
    written = record.read()
    files = {path: (path.read_bytes(), path.stat().st_mode) for path in record.files}
    assert files
    for damaged, (content, _) in files.items():
        noticed = 0
        for bit in draw.sample(range(8 * len(content)), min(BITS, 8 * len(content))):
            turned = bytearray(content)
            turned[bit // 8] ^= 1 << bit % 8
            damaged.write_bytes(turned)
            try:
                found = record.read()
            except ScaleOTError as error:
                noticed += 1
                assert damaged.name in str(error) or (record.name and record.name in str(error)), error
            else:
                noticed += found is None or damaged.read_bytes() == content
                assert found in (None, written), f"{damaged}, bit {bit}: what is read is another thing"
            for path, (kept, mode) in files.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(kept)
                path.chmod(mode)
        assert noticed, f"{damaged}: nothing was ever noticed"
