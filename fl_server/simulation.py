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
class _Material:
    """What the run works on, read and checked before anything is computed."""

    partitions: tuple[tuple[Record, ...], ...]
    test: tuple[Record, ...]


@dataclass(frozen=True)
class _Compressed:
    """The outcome of the model owner's first stage."""

    plan: LayerPlan
    importance: ImportanceReport | None
    described: EmulatorReport
    sealed: SealedBundle


def simulate(run: RunFile, directory: Path, reporter: Reporter) -> Report:
    """Runs the federation of a run file and writes its results to the existing ``directory``.

    Writes ``report.json``, ``report.html``, ``run.toml``, ``adapter/``, ``bundle/``, ``owner.pub`` and, where the builder
    has one, ``importance/``. The simulated parties' private keys and text lie in a temporary directory meanwhile.

    Raises:
        InputError: the run file's model, text or data cannot be used.
        RoundFailedError: a round had no update that could be accepted.
    """
    watch = Stopwatch()
    (directory / "run.toml").write_text(to_toml(run), encoding="utf-8")
    with watch.stage("load"):
        material = _read_material(run, reporter)
        full = load_full_model(run.model, reporter)
    with watch.stage("evaluate"):
        zero_shot = _evaluate(full, material, reporter, "zero-shot")
    with tempfile.TemporaryDirectory(prefix="scaleot-") as name:
        workspace = create_workspace(Path(name))
        compressed = _compress(run, full, workspace, directory, watch, reporter)
        rounds, spec, adapter = _federate(run, full, compressed, workspace, material, watch, reporter)
        with watch.stage("open"):
            emulator = _open_emulator(full, workspace, compressed.sealed)
    with watch.stage("evaluate"):
        results = _measure(full, emulator, material, spec, adapter, zero_shot, reporter)
    del emulator
    if run.evaluation.full_fine_tuning:
        results = _with_reference(run, full, material, results, watch, reporter)
    save_adapter(adapter, spec, full.layout, directory / "adapter")
    findings = Findings(
        run, full, results, compressed.plan, compressed.importance, compressed.described, compressed.sealed, rounds
    )
    report = make_report(findings, watch.read())
    write_report(report, directory)
    return report


def _read_material(run: RunFile, reporter: Reporter) -> _Material:
    train = read_records(asset_or_path(run.data.train, reporter))
    test = read_records(asset_or_path(run.data.test, reporter))
    federation = run.federation
    partitions = partition_records(
        train,
        clients=federation.clients,
        method=federation.partition,
        alpha=federation.partition_alpha,
        seed=derive_seed(run.seed, "partition"),
    )
    return _Material(partitions, test[: run.evaluation.examples])


def _compress(
    run: RunFile, full: LanguageModel, workspace: Workspace, directory: Path, watch: Stopwatch, reporter: Reporter
) -> _Compressed:
    importance = None
    if run.emulator.builder == "scaleot":
        with watch.stage("importance"):
            importance = find_or_estimate_importance(full, run.importance, run.seed, reporter)
            save_importance(importance, directory / "importance")
    with watch.stage("build"):
        plan = plan_emulator(run.emulator, full.layout.num_layers, importance.scores if importance else None)
        emulator = build_planned(full, plan, importance)
        described = describe_emulator(emulator, full)
    with watch.stage("seal"):
        sealed = seal_emulator(emulator, workspace, directory / "bundle")
        save_owner_public_key(workspace.owner_key.public, directory / "owner.pub")
    return _Compressed(plan, importance, described, sealed)


def _federate(
    run: RunFile,
    full: LanguageModel,
    compressed: _Compressed,
    workspace: Workspace,
    material: _Material,
    watch: Stopwatch,
    reporter: Reporter,
) -> tuple[tuple[RoundRecord, ...], AdapterSpec, TensorDict]:
    spec = adapter_spec(run, compressed.plan.adapter_layers)
    settle_data_owners(workspace, compressed.sealed, material.partitions, device=run.model.device)
    attached = attach_adapter(full.model, full.layout, spec)
    try:
        initial = attached.state()
    finally:
        attached.detach()
    write_run(workspace.owner_directory, _run_settings(run, spec, compressed.sealed), initial)
    if run.federation.engine == "flower":
        run_with_flower(workspace.owner_directory, workspace.data_owners_directory, reporter)
    else:
        owners = workspace.data_owner_directories(run.federation.clients)
        run_in_process(workspace.owner_directory, owners, reporter)
    rounds = read_rounds(workspace.owner_directory)
    watch.add("aggregate", sum(record.aggregate_seconds for record in rounds))
    watch.add("train", sum(record.seconds - record.aggregate_seconds for record in rounds))
    return rounds, spec, read_adapter(workspace.owner_directory / ADAPTER_FILE)


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


def _open_emulator(full: LanguageModel, workspace: Workspace, sealed: SealedBundle) -> Emulator:
    with open_as_data_owner(workspace, sealed, 0) as opened:
        return read_emulator(opened.files, device=full.model.device)


def _evaluate(models: LanguageModel | Emulator, material: _Material, reporter: Reporter, name: str) -> Metrics:
    reporter.note(f"evaluating: {name}")
    return evaluate(models.model, models.tokenizer, material.test, reporter=reporter)


def _measure(
    full: LanguageModel,
    emulator: Emulator,
    material: _Material,
    spec: AdapterSpec,
    adapter: TensorDict,
    zero_shot: Metrics,
    reporter: Reporter,
) -> Results:
    emulator_zero_shot = _evaluate(emulator, material, reporter, "emulator zero-shot")
    with plugged_in(emulator.model, emulator.layout, spec, adapter):
        emulator_tuned = _evaluate(emulator, material, reporter, "emulator tuned")
    with plugged_in(full.model, full.layout, spec, adapter):
        plug_in = _evaluate(full, material, reporter, "plug-in")
    return Results(zero_shot, emulator_zero_shot, emulator_tuned, plug_in, None)


def _with_reference(
    run: RunFile, full: LanguageModel, material: _Material, results: Results, watch: Stopwatch, reporter: Reporter
) -> Results:
    """Adds full fine-tuning: an adapter of the same kind in every layer, trained on the pooled text.

    It sees as many examples as all clients together, in batches of their size.
    """
    federation = run.federation
    steps = federation.rounds * federation.local_steps * federation.clients_per_round
    attached = attach_adapter(full.model, full.layout, adapter_spec(run, range(full.layout.num_layers)))
    try:
        pooled = [record for records in material.partitions for record in records]
        with watch.stage("train"):
            train_adapter(
                attached,
                encode_for_training(pooled, full.tokenizer, max_tokens=federation.max_tokens),
                LocalTraining(steps, federation.batch_size, federation.learning_rate, federation.optimizer),
                pad_token_id=full.tokenizer.pad_token_id,
                seed=derive_seed(run.seed, "full fine-tuning"),
                reporter=reporter,
            )
        with watch.stage("evaluate"):
            return replace(results, full_fine_tuning=_evaluate(full, material, reporter, "full fine-tuning"))
    finally:
        attached.detach()
