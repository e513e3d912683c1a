"""From the full model to its sealed emulator: what ``scaleot seal`` does, and the first half of a simulation."""

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fl_server.compress import Workbench, disclosure_basis, needs_importance
from fl_server.feasibility import load_feasible_model
from fl_server.model_privacy import record_of_home, warn_of_disclosure
from fl_server.owner import INITIAL_ADAPTER_FILE
from fl_server.reference import adapter_spec
from fl_server.sealed_versions import (
    BUNDLE_DIRECTORY,
    DATA_KEY_FILE,
    IMPORTANCE_DIRECTORY,
    PLAIN_PREFIX,
    RUN_FILE,
    SealedRecord,
    SealedVersion,
    next_version,
    read_sealed,
    write_record,
)
from fl_server.stopwatch import Stopwatch
from scaleot_core.adapters.adapter import attach_adapter
from scaleot_core.adapters.spec import AdapterSpec
from scaleot_core.bundle import SealedBundle, SigningKey, save_data_key, seal_bundle
from scaleot_core.bundle.files import new_directory, write_synced
from scaleot_core.compression.emulator import Emulator, describe_emulator, write_emulator
from scaleot_core.compression.emulator_report import EmulatorReport
from scaleot_core.compression.importance import ImportanceReport
from scaleot_core.compression.importance_store import save_importance
from scaleot_core.compression.plan import LayerPlan
from scaleot_core.config import to_toml
from scaleot_core.federation.validation import encode_tensors
from scaleot_core.model_privacy.disclosure import Revealed
from scaleot_core.model_privacy.disclosure_record import DisclosedEmulator, record_disclosure
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import Reporter
from scaleot_core.run_file import RunFile
from scaleot_core.shapes import TensorDict


@dataclass(frozen=True)
class Compressed:
    """The outcome of stages 1 and 2: an emulator, and what was learnt on the way to it."""

    emulator: Emulator
    importance: ImportanceReport | None
    """None where the builder needs no scores."""
    described: EmulatorReport
    revealed: Revealed


def compress(
    run: RunFile, full: LanguageModel, watch: Stopwatch, reporter: Reporter, *, record: Path | None
) -> Compressed:
    """Scores the layers of a model where the run file's builder asks for it, and builds the emulator.

    A warning is given where it would reveal more than what stands in the ``record`` of disclosure.

    Raises:
        InputError: the run file's text or plan does not fit the model, or the record of disclosure cannot be read.
    """
    workbench = Workbench(full, run, reporter)
    importance = None
    if needs_importance(run.emulator):
        with watch.stage("importance"):
            importance = workbench.importance()
    with watch.stage("build"):
        emulator = workbench.build(run.emulator)
        revealed = Revealed(emulator.plan, disclosure_basis(run, reporter))
        warn_of_disclosure(record, full, revealed, reporter)
        return Compressed(emulator, importance, describe_emulator(emulator, full), revealed)


def initial_adapter(run: RunFile, full: LanguageModel, plan: LayerPlan) -> tuple[AdapterSpec, TensorDict]:
    """Returns the specification of the run file's adapter in a plan's adapter layers, and what round 1 starts from."""
    spec = adapter_spec(run, plan.adapter_layers)
    attached = attach_adapter(full.model, full.layout, spec)
    try:
        return spec, attached.state()
    finally:
        attached.detach()


def seal_emulator(
    emulator: Emulator, destination: Path, *, owner: SigningKey, version: int = 1, not_after: datetime, plain_in: Path
) -> SealedBundle:
    """Signs and encrypts an emulator into ``destination``; meanwhile its plaintext lies in a directory in ``plain_in``.

    Raises:
        OutputError: ``destination`` exists or cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix=PLAIN_PREFIX, dir=plain_in) as name:
        plain = Path(name)
        write_emulator(emulator, plain)
        description = {"family": emulator.layout.family.model_type, "plan": emulator.plan.to_json()}
        return seal_bundle(plain, destination, owner=owner, model=description, version=version, not_after=not_after)


def seal_version(
    run: RunFile,
    home: Path,
    *,
    owner: SigningKey,
    version: int | None = None,
    lifetime: timedelta,
    reporter: Reporter,
) -> SealedVersion:
    """Makes the emulator of a run file and seals it into the model owner's home as its next version, or as ``version``.

    Nothing is left of a version that fails. ``lifetime`` runs from the moment of sealing. The emulator stands in the
    record of disclosure before it stands in the home, where that record lies unless the run file names another place.

    Raises:
        InputError: the run file's model or text cannot be used, or the version is not above every one that is there.
        OutputError: the home cannot be written.
    """
    with next_version(home, version) as (directory, number):
        full = load_feasible_model(run, reporter)
        disclosed = record_of_home(run, home)
        made = compress(run, full, Stopwatch(), reporter, record=disclosed)
        spec, initial = initial_adapter(run, full, made.emulator.plan)
        reporter.note(f"sealing version {number}")
        with new_directory(directory) as building:
            building.chmod(0o700)
            record = _seal(made, building, owner, version=number, lifetime=lifetime, adapter=spec, run=run)
            write_synced(building / INITIAL_ADAPTER_FILE, encode_tensors(initial), mode=0o600)
            write_synced(building / RUN_FILE, to_toml(run).encode(), mode=0o600)
            if made.importance is not None:
                save_importance(made.importance, building / IMPORTANCE_DIRECTORY)
            left = DisclosedEmulator(record.digest, datetime.now(UTC).date(), made.revealed)
            record_disclosure(disclosed, full.digest, left)
    return read_sealed(home, number)


def _seal(
    made: Compressed,
    building: Path,
    owner: SigningKey,
    *,
    version: int,
    lifetime: timedelta,
    adapter: AdapterSpec,
    run: RunFile,
) -> SealedRecord:
    """Seals the emulator of a version that is being made, and writes its data key and its record."""
    not_after = (datetime.now(UTC) + lifetime).replace(microsecond=0)
    sealed = seal_emulator(
        made.emulator,
        building / BUNDLE_DIRECTORY,
        owner=owner,
        version=version,
        not_after=not_after,
        plain_in=building.parent,
    )
    save_data_key(sealed.data_key, building / DATA_KEY_FILE)
    record = SealedRecord(
        version=version,
        bundle_id=sealed.bundle_id,
        digest=sealed.digest,
        size_bytes=sealed.size_bytes,
        not_after=not_after,
        builder=run.emulator.builder,
        emulator=made.described,
        adapter=adapter,
        layers=made.emulator.plan.to_json(),
    )
    write_record(building, record)
    return record
