"""A model owner's home with sealed versions of a small bundle, and data owners' homes that receive from it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from fl_clients.fetch import FetchedBundle
from fl_clients.receive import receive
from fl_clients.sources import FolderSource, Source
from fl_server.bundle_index import BundleIndex, read_manifest
from fl_server.repository import publish
from fl_server.repository_state import REPOSITORY_DIRECTORY
from fl_server.sealed_versions import (
    BUNDLE_DIRECTORY,
    DATA_KEY_FILE,
    SealedRecord,
    SealedVersion,
    next_version,
    read_sealed,
    write_record,
)
from scaleot_core.adapters.spec import AdapterKind, AdapterSpec
from scaleot_core.bundle import (
    Identity,
    SigningKey,
    generate_identity,
    generate_signing_key,
    load_signing_key,
    open_bundle,
    read_bundle,
    save_data_key,
    save_identity,
    save_signing_key,
    save_verifying_key,
    seal_bundle,
    verify_bundle,
)
from scaleot_core.bundle.repository import TARGETS_DIRECTORY
from scaleot_core.compression.emulator_report import EmulatorReport
from scaleot_core.compression.plan import LayerPlan, LayerRole, PlannedLayer
from scaleot_core.progress import SilentReporter
from tests.support.bundles import FILES, MODEL, write_files

CLINIC = "clinic-a"
PLAN = LayerPlan((PlannedLayer(0, LayerRole.ADAPTER), PlannedLayer(1, LayerRole.DROPPED)))


def now() -> datetime:
    """The real time: python-tuf asks no other."""
    return datetime.now(UTC)


def new_owner_home(home: Path) -> Path:
    """Makes a home with the owner's key and nothing else."""
    home.mkdir(mode=0o700)
    owner = generate_signing_key()
    save_signing_key(owner, home / "owner.key")
    save_verifying_key(owner.public, home / "owner.pub")
    return home


def served_digests(index: BundleIndex) -> set[str]:
    """Returns the digests of the manifests among an index's small files."""
    return {
        read_manifest(content)[0] for name, content in index.files.items() if name.startswith(f"{TARGETS_DIRECTORY}/")
    }


def owner_of(home: Path) -> SigningKey:
    return load_signing_key(home / "owner.key")


def seal_small_version(
    home: Path, files: dict[str, bytes] = FILES, *, version: int | None = None, days: float = 30
) -> SealedVersion:
    """Seals a few small files as the next version: everything but a model that was compressed."""
    end = (now() + timedelta(days=days)).replace(microsecond=0)
    with next_version(home, version) as (directory, number):
        source = write_files(home / f"plain-{number}", files)
        directory.mkdir(mode=0o700)
        bundle = seal_bundle(
            source, directory / BUNDLE_DIRECTORY, owner=owner_of(home), model=MODEL, version=number, not_after=end
        )
        save_data_key(bundle.data_key, directory / DATA_KEY_FILE)
        record = SealedRecord(
            version=number,
            bundle_id=bundle.bundle_id,
            digest=bundle.digest,
            size_bytes=bundle.size_bytes,
            not_after=end,
            builder="scaleot",
            emulator=EmulatorReport(1, 4, 0.5, 0.25, 0.0),
            adapter=AdapterSpec(AdapterKind.LORA, (0,), 2, seed=1),
            layers=PLAN.to_json(),
        )
        write_record(directory, record)
    return read_sealed(home, number)


def publish_small_version(home: Path, files: dict[str, bytes] = FILES) -> SealedVersion:
    """Seals and publishes the next version."""
    sealed = seal_small_version(home, files)
    publish(home, sealed, now=now())
    return sealed


def new_data_owner_home(owner_home: Path, home: Path) -> Identity:
    """Makes what an admission leaves in a data owner's home, as far as receiving needs it; pins the first root."""
    home.mkdir(mode=0o700)
    identity = generate_identity()
    save_identity(identity, home / "identity.key")
    (home / "owner.pub").write_bytes((owner_home / "owner.pub").read_bytes())
    (home / "root.json").write_bytes((owner_home / REPOSITORY_DIRECTORY / "metadata" / "1.root.json").read_bytes())
    return identity


def received(
    home: Path, source: Source | Path, *, organisation: str = CLINIC, at: datetime | None = None
) -> FetchedBundle:
    """Receives from a source, or from a repository's directory."""
    return receive(
        FolderSource(source) if isinstance(source, Path) else source,
        home,
        organisation=organisation,
        now=at or now(),
        deadline_seconds=10,
        reporter=SilentReporter(),
    )


def opened(home: Path, identity: Identity, owner: SigningKey) -> dict[str, bytes]:
    """Opens what a data owner's home calls current."""
    verified = verify_bundle(read_bundle(home / "bundles" / "current"), owner.public, now=now())
    grant = (home / "grant.json").read_bytes()
    with open_bundle(verified, grant, identity, organisation=CLINIC, now=now()) as bundle:
        return {name: path.read_bytes() for name, path in bundle.files.items()}
