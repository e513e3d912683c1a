"""A whole federation on one machine, from the full model to the report: what ``scaleot simulate`` runs."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fl_server.compress import (
    asset_or_path,
    build_planned,
    find_or_estimate_importance,
    load_full_model,
    plan_emulator,
)
from fl_server.flower_simulation import run_with_flower
from fl_server.in_process import run_in_process
from fl_server.owner import ADAPTER_FILE, OwnerRunSettings, RoundRecord, read_adapter, read_rounds, write_run
from fl_server.report import Findings, make_report
from fl_server.stopwatch import Stopwatch
from fl_server.workspace import (
    Workspace,
    create_workspace,
    open_as_data_owner,
    seal_emulator,
    settle_data_owners,
)
from scaleot_core.adapters.adapter import AdapterKind, AdapterSpec, attach_adapter
from scaleot_core.adapters.plug_in import plugged_in, save_adapter
from scaleot_core.bundle import SealedBundle, save_owner_public_key
from scaleot_core.compression.emulator import Emulator, EmulatorReport, describe_emulator, read_emulator
from scaleot_core.compression.importance import ImportanceReport
from scaleot_core.compression.importance_store import save_importance
from scaleot_core.compression.plan import LayerPlan
from scaleot_core.config import RunFile, to_toml
from scaleot_core.evaluation import Metrics, evaluate
from scaleot_core.federation.averaging import Aggregation
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import Reporter
from scaleot_core.report import Report, Results, write_report
from scaleot_core.seeds import derive_seed
from scaleot_core.shapes import TensorDict
from scaleot_core.training.data import Record, encode_for_training, partition_records, read_records
from scaleot_core.training.local import LocalTraining, train_adapter

ROUND_DEADLINE_SECONDS = 86_400.0
"""Simulated clients wait for one another on one machine; nobody is late."""


@dataclass(frozen=True)
class _Session:
    """One run under way: what it was given, what it works on, and where it keeps it."""

    run: RunFile
    full: LanguageModel
    partitions: tuple[tuple[Record, ...], ...]
    """The training records of every data owner."""
    test: tuple[Record, ...]
    workspace: Workspace
    directory: Path
    watch: Stopwatch
    reporter: Reporter

    def evaluate(self, title: str, held: LanguageModel | Emulator) -> Metrics:
        """Measures a model on the held-out records."""
        self.reporter.note(f"evaluating: {title}")
        with self.watch.stage("evaluate"):
            return evaluate(held.model, held.tokenizer, self.test, reporter=self.reporter)


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
    adapter: TensorDict


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
            partitions, test = _read_data(run, reporter)
            full = load_full_model(run.model, reporter)
            workspace = create_workspace(Path(name))
        session = _Session(run, full, partitions, test, workspace, directory, watch, reporter)
        zero_shot = session.evaluate("zero-shot", full)
        compressed = _compress(session)
        federated = _federate(session, compressed)
        results = _measure(session, compressed.sealed, federated, zero_shot)
    if run.evaluation.full_fine_tuning:
        results = replace(results, full_fine_tuning=_full_fine_tuning(session))
    save_adapter(full.model, full.layout, federated.spec, federated.adapter, directory / "adapter")
    findings = Findings(run, full, results, federated.rounds, **vars(compressed))
    report = make_report(findings, watch.read())
    write_report(report, directory)
    return report


def _read_data(run: RunFile, reporter: Reporter) -> tuple[tuple[tuple[Record, ...], ...], tuple[Record, ...]]:
    """Reads and divides the records before anything is computed, so that faults in them show at once."""
    train = read_records(asset_or_path(run.data.train, reporter))
    test = read_records(asset_or_path(run.data.test, reporter))
    partitions = partition_records(
        train,
        clients=run.federation.clients,
        method=run.federation.partition,
        alpha=run.federation.partition_alpha,
        seed=derive_seed(run.seed, "partition"),
    )
    return partitions, test[: run.evaluation.examples]


def _compress(session: _Session) -> _Compressed:
    run, full, watch = session.run, session.full, session.watch
    importance = None
    if run.emulator.builder == "scaleot":
        with watch.stage("importance"):
            importance = find_or_estimate_importance(full, run.importance, session.reporter)
            save_importance(importance, session.directory / "importance")
    with watch.stage("build"):
        plan = plan_emulator(run.emulator, full.layout.num_layers, importance.scores if importance else None)
        emulator = build_planned(full, plan, importance)
        described = describe_emulator(emulator, full)
    with watch.stage("seal"):
        sealed = seal_emulator(emulator, session.workspace, session.directory / "bundle")
        save_owner_public_key(session.workspace.owner_key.public, session.directory / "owner.pub")
    return _Compressed(plan, importance, described, sealed)


def _federate(session: _Session, compressed: _Compressed) -> _Federated:
    run, full, workspace = session.run, session.full, session.workspace
    spec = adapter_spec(run, compressed.plan.adapter_layers)
    attached = attach_adapter(full.model, full.layout, spec)
    initial = attached.state()
    attached.detach()
    settle_data_owners(workspace, compressed.sealed, session.partitions, device=run.model.device, policy=_policy(run))
    write_run(workspace.owner_directory, _run_settings(run, spec, compressed.sealed), initial)
    if run.federation.engine == "flower":
        run_with_flower(workspace.owner_directory, workspace.data_owners_directory, session.reporter)
    else:
        owners = workspace.data_owner_directories(run.federation.clients)
        run_in_process(workspace.owner_directory, owners, session.reporter)
    rounds = read_rounds(workspace.owner_directory)
    session.watch.add("aggregate", sum(record.aggregate_seconds for record in rounds))
    session.watch.add("train", sum(record.seconds - record.aggregate_seconds for record in rounds))
    return _Federated(rounds, spec, read_adapter(workspace.owner_directory / ADAPTER_FILE))


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


def adapter_spec(run: RunFile, layers: Sequence[int]) -> AdapterSpec:
    """Returns the specification of the run file's adapter in these layers."""
    return AdapterSpec(
        kind=AdapterKind(run.adapter.kind),
        layers=tuple(layers),
        rank=run.adapter.rank,
        seed=derive_seed(run.seed, "adapter"),
        freezes_down=run.federation.aggregation == "ffa",
    )


def _run_settings(run: RunFile, spec: AdapterSpec, sealed: SealedBundle) -> OwnerRunSettings:
    federation = run.federation
    return OwnerRunSettings(
        run=f"simulation-{sealed.bundle_id}",
        clients=federation.clients,
        clients_per_round=federation.clients_per_round,
        rounds=federation.rounds,
        local_steps=federation.local_steps,
        batch_size=federation.batch_size,
        learning_rate=federation.learning_rate,
        optimizer=federation.optimizer,
        max_tokens=federation.max_tokens,
        aggregation=Aggregation(federation.aggregation),
        adapter=spec,
        bundle_digest=sealed.digest,
        seed=derive_seed(run.seed, "federation"),
        round_deadline_seconds=ROUND_DEADLINE_SECONDS,
    )


def _measure(session: _Session, sealed: SealedBundle, federated: _Federated, zero_shot: Metrics) -> Results:
    """Measures the emulator as the first data owner opens it, and the adapter in it and in the full model."""
    full, spec, adapter = session.full, federated.spec, federated.adapter
    with session.watch.stage("open"), open_as_data_owner(session.workspace, sealed, 0) as opened:
        emulator = read_emulator(opened.files, device=full.model.device)
    emulator_zero_shot = session.evaluate("emulator zero-shot", emulator)
    with plugged_in(emulator.model, emulator.layout, spec, adapter):
        emulator_tuned = session.evaluate("emulator tuned", emulator)
    with plugged_in(full.model, full.layout, spec, adapter):
        plug_in = session.evaluate("plug-in", full)
    return Results(zero_shot, emulator_zero_shot, emulator_tuned, plug_in, None)


def _full_fine_tuning(session: _Session) -> Metrics:
    """Measures the reference: an adapter of the same kind in every layer, trained on the pooled text.

    It takes as many steps as one client over all rounds, in batches of a size of its own. With ``clients_per_round``
    times a client's batch size it sees as many examples as all clients; the quickstart takes half of that, for time.
    """
    run, full, federation = session.run, session.full, session.run.federation
    steps, batch_size = federation.rounds * federation.local_steps, run.evaluation.full_fine_tuning_batch_size
    pooled = [record for records in session.partitions for record in records]
    examples = encode_for_training(pooled, full.tokenizer, max_tokens=federation.max_tokens)
    session.reporter.note("full fine-tuning, the reference")
    attached = attach_adapter(full.model, full.layout, adapter_spec(run, range(full.layout.num_layers)))
    try:
        with session.watch.stage("train"):
            train_adapter(
                attached,
                examples,
                LocalTraining(steps, batch_size, federation.learning_rate, federation.optimizer),
                pad_token_id=full.tokenizer.pad_token_id,
                seed=derive_seed(run.seed, "full fine-tuning"),
                reporter=session.reporter,
            )
        return session.evaluate("full fine-tuning", full)
    finally:
        attached.detach()
