"""A whole federation on one machine, from the full model to the report: what ``scaleot simulate`` runs."""

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from fl_server.canary import write_canary
from fl_server.data import Data, read_data
from fl_server.failure_logs import explained_failures
from fl_server.feasibility import load_feasible_model
from fl_server.flower_simulation import run_with_flower
from fl_server.in_process import run_in_process
from fl_server.model_privacy import Target, disclosure_record, measure_model_privacy
from fl_server.owner import (
    CanarySettings,
    RoundRecord,
    read_round_adapter,
    read_rounds,
    write_run,
)
from fl_server.privacy import check_privacy, own_privacy
from fl_server.reference import full_fine_tuned
from fl_server.report import Findings, make_report
from fl_server.run_settings import run_settings
from fl_server.sealed_versions import DATA_KEY_FILE
from fl_server.sealing import compress, initial_adapter, seal_emulator
from fl_server.stopwatch import Stopwatch
from fl_server.workspace import (
    BUNDLE_LIFETIME,
    OWNER_KEY_FILE,
    Workspace,
    create_workspace,
    open_as_data_owner,
    organisation,
    settle_data_owners,
)
from fl_server.worth import Evaluator, measure_worth
from scaleot_core.adapters.plug_in import save_adapter
from scaleot_core.adapters.spec import AdapterSpec
from scaleot_core.bundle import SealedBundle, save_data_key, save_verifying_key
from scaleot_core.compression.emulator import read_emulator
from scaleot_core.compression.emulator_report import EmulatorReport
from scaleot_core.compression.importance import ImportanceReport
from scaleot_core.compression.importance_store import save_importance
from scaleot_core.compression.plan import LayerPlan
from scaleot_core.config import to_toml
from scaleot_core.evaluation import Metrics
from scaleot_core.model_privacy.disclosure_record import check_recordable
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import Reporter
from scaleot_core.report import Report, ReportedModelPrivacy, Results, write_report
from scaleot_core.run_file import RunFile
from scaleot_core.shapes import TensorDict


@dataclass(frozen=True)
class _Session:
    """One run under way: what it was given, what it works on, and where it keeps it."""

    run: RunFile
    full: LanguageModel
    data: Data
    workspace: Workspace
    directory: Path
    watch: Stopwatch
    reporter: Reporter

    @property
    def measure(self) -> Evaluator:
        """Measures a model on the held-out records."""
        return Evaluator(self.run.model, self.data, self.watch, self.reporter)


@dataclass(frozen=True)
class _Compressed:
    """The outcome of the model owner's first stage."""

    plan: LayerPlan
    importance: ImportanceReport | None
    described: EmulatorReport
    sealed: SealedBundle


@dataclass(frozen=True)
class _Federated:
    """The outcome of the rounds."""

    rounds: tuple[RoundRecord, ...]
    spec: AdapterSpec
    adapters: tuple[TensorDict, ...]
    """After each round."""


@dataclass(frozen=True)
class _Measured:
    """What the emulator and the adapter of the federation are worth."""

    results: Results
    adapter: TensorDict
    model_privacy: ReportedModelPrivacy


def simulate(run: RunFile, directory: Path, reporter: Reporter) -> Report:
    """Runs the federation of a run file and writes its results to the existing ``directory``.

    Writes ``report.json``, ``report.html``, ``run.toml``, ``adapter/``, ``bundle/``, ``owner.pub`` and, where the
    builder has one, ``importance/``. The simulated parties' keys and text lie in a temporary directory meanwhile.

    Raises:
        InputError: the run file's model, text or data cannot be used.
        RoundFailedError: a round had no update that could be accepted.
    """
    watch = Stopwatch()
    (directory / "run.toml").write_text(to_toml(run), encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="scaleot-") as name:
        with watch.stage("load"):
            data = read_data(run, reporter)
            check_privacy(run, data.partitions, reporter)
            full = load_feasible_model(run, reporter)
            if record := disclosure_record(run):
                check_recordable(record, full.digest)
            workspace = create_workspace(Path(name))
        session = _Session(run, full, data, workspace, directory, watch, reporter)
        zero_shot = session.measure("zero-shot", full)
        compressed = _compress(session)
        federated = _federate(session, compressed)
        measured = _measure(session, compressed.sealed, federated, zero_shot)
    results = measured.results
    if run.evaluation.full_fine_tuning:
        results = replace(results, full_fine_tuning=_full_fine_tuning(session))
    save_adapter(full.model, full.layout, federated.spec, measured.adapter, directory / "adapter")
    findings = Findings(
        run,
        full,
        results,
        federated.rounds,
        **vars(compressed),
        model_privacy=measured.model_privacy,
        recipients=tuple(organisation(number) for number in range(run.federation.clients)),
    )
    report = make_report(findings, watch.read())
    write_report(report, directory)
    return report


def _compress(session: _Session) -> _Compressed:
    run, workspace = session.run, session.workspace
    record = disclosure_record(run)
    made = compress(run, session.full, session.watch, session.reporter, record=record)
    if made.importance is not None:
        save_importance(made.importance, session.directory / "importance")
    with session.watch.stage("seal"):
        sealed = seal_emulator(
            made.emulator,
            session.directory / "bundle",
            owner=workspace.owner_key,
            not_after=datetime.now(UTC) + BUNDLE_LIFETIME,
            plain_in=workspace.root,
        )
        save_verifying_key(workspace.owner_key.public, session.directory / OWNER_KEY_FILE)
    return _Compressed(made.emulator.plan, made.importance, made.described, sealed)


def _federate(session: _Session, compressed: _Compressed) -> _Federated:
    run, full, workspace = session.run, session.full, session.workspace
    spec, initial = initial_adapter(run, full, compressed.plan)
    members = settle_data_owners(
        workspace,
        compressed.sealed,
        session.data.partitions,
        choices={"device": run.model.device, "gradient_checkpointing": run.federation.gradient_checkpointing},
        policy=_policy(run),
        privacy=own_privacy(run),
    )
    name = f"simulation-{compressed.sealed.bundle_id}"
    settings = run_settings(
        run,
        spec,
        compressed.sealed.digest,
        name=name,
        node_wait_seconds=run.federation.round_deadline_seconds,
        canary=_canary(session, compressed.sealed) if session.data.canary else None,
    )
    write_run(workspace.owner_directory, settings, initial, owner=workspace.owner_key, members=members)
    owners = workspace.data_owner_directories(run.federation.clients)
    with explained_failures(owners):
        if run.federation.engine == "flower":
            run_with_flower(workspace.owner_directory, workspace.data_owners_directory, session.reporter)
        else:
            run_in_process(workspace.owner_directory, owners, session.reporter)
    rounds = read_rounds(workspace.owner_directory)
    session.watch.add("aggregate", sum(record.aggregate_seconds for record in rounds))
    session.watch.add("train", sum(record.seconds - record.aggregate_seconds for record in rounds))
    adapters = tuple(read_round_adapter(workspace.owner_directory, record) for record in rounds)
    return _Federated(rounds, spec, adapters)


def _canary(session: _Session, sealed: SealedBundle) -> CanarySettings:
    data_key = session.workspace.root / DATA_KEY_FILE
    save_data_key(sealed.data_key, data_key)
    return write_canary(
        session.data.canary,
        session.workspace.owner_directory,
        tolerance=session.run.canary.tolerance,
        bundle=sealed.path.absolute(),
        data_key=data_key,
        owner_public_key=session.directory.absolute() / OWNER_KEY_FILE,
    )


def _policy(run: RunFile) -> dict[str, float]:
    """Returns the limits of data owners that allow what the run file asks for, and no more."""
    federation = run.federation
    return {
        "max_learning_rate": federation.learning_rate,
        "max_local_steps": federation.local_steps,
        "max_batch_size": federation.batch_size,
        "max_tokens": federation.max_tokens,
        "max_adapter_rank": run.adapter.rank,
    }


def _measure(session: _Session, sealed: SealedBundle, federated: _Federated, zero_shot: Metrics) -> _Measured:
    """Measures and attacks the emulator as the first data owner opens it; the chosen adapter in it and plugged in."""
    full, spec = session.full, federated.spec
    with session.watch.stage("open"), open_as_data_owner(session.workspace, sealed, 0) as opened:
        emulator = read_emulator(opened.files, device=full.model.device)
    worth = measure_worth(full, emulator, spec, federated.adapters, session.measure)
    target = Target(full, emulator, zero_shot)
    record = disclosure_record(session.run)
    model_privacy = measure_model_privacy(
        session.run, target, session.data, session.reporter, digest=sealed.digest, record=record
    )
    results = Results(zero_shot, worth.emulator_zero_shot, worth.emulator_tuned, worth.plug_in, None)
    return _Measured(results, worth.adapter, model_privacy)


def _full_fine_tuning(session: _Session) -> Metrics:
    with ExitStack() as stack:
        with session.watch.stage("train"):
            tuned = full_fine_tuned(session.run, session.full, session.data, session.reporter)
            full = stack.enter_context(tuned)
        return session.measure("full fine-tuning", full)
