"""From what a run found to its report."""

from dataclasses import dataclass

from fl_server.memory import peak_memory_bytes
from fl_server.owner import RoundRecord
from fl_server.privacy import reported_privacy
from fl_server.versions import versions
from scaleot_core.bundle import SealedBundle
from scaleot_core.compression.emulator_report import EmulatorReport
from scaleot_core.compression.importance import ImportanceReport
from scaleot_core.compression.plan import LayerPlan, LayerRole, PlannedLayer
from scaleot_core.compression.rank import kept_rank, projection_weight
from scaleot_core.models.families import FUSED_BLOCKS
from scaleot_core.models.loading import LanguageModel
from scaleot_core.report import (
    Report,
    ReportedBundle,
    ReportedEmulator,
    ReportedFederation,
    ReportedLayer,
    ReportedModelPrivacy,
    ReportedRound,
    Results,
    StageSeconds,
)
from scaleot_core.run_file import RunFile


@dataclass(frozen=True)
class Findings:
    """Everything that a report tells, but for the time it took."""

    run: RunFile
    full: LanguageModel
    results: Results
    rounds: tuple[RoundRecord, ...]
    plan: LayerPlan
    importance: ImportanceReport | None
    described: EmulatorReport
    sealed: SealedBundle
    model_privacy: ReportedModelPrivacy
    recipients: tuple[str, ...]
    """Whom the emulator was made readable for."""


def make_report(findings: Findings, seconds: StageSeconds) -> Report:
    """Returns the report of a run."""
    return Report(
        results=findings.results,
        emulator=_emulator(findings),
        federation=_federation(findings),
        bundle=ReportedBundle(findings.sealed.size_bytes, findings.sealed.digest, findings.recipients),
        privacy=reported_privacy(findings.run, findings.rounds),
        model_privacy=findings.model_privacy,
        seconds=seconds,
        peak_memory_bytes=peak_memory_bytes(),
        config=findings.run.model_dump(mode="json"),
        versions=versions(),
    )


def _emulator(findings: Findings) -> ReportedEmulator:
    described, importance = findings.described, findings.importance
    return ReportedEmulator(
        builder=findings.run.emulator.builder,
        parameters=described.parameters,
        size_bytes=described.size_bytes,
        size_share=described.size_share,
        verbatim_share=described.verbatim_share,
        trained_share=described.trained_share,
        layers=tuple(ReportedLayer(one.index, one.role, _rank(findings, one)) for one in findings.plan.layers),
        importance=importance.scores if importance else None,
    )


def _rank(findings: Findings, planned: PlannedLayer) -> int | None:
    """Returns the rank of a kept layer's query projection, or the width of a replaced layer's harmonizer."""
    if planned.role is LayerRole.REPLACED and findings.importance:
        return findings.importance.settings.harmonizer_rank
    if planned.role is not LayerRole.KEPT:
        return None
    layout = findings.full.layout
    first = layout.layer(findings.full.model, planned.index).get_submodule(layout.attention_linears[0])
    out_features, in_features = projection_weight(first).shape
    blocks = 1 if layout.family.fusion is None else FUSED_BLOCKS
    return kept_rank(out_features // blocks, in_features, planned.kept_rank_share)


def _federation(findings: Findings) -> ReportedFederation:
    rounds, clients = findings.rounds, findings.run.federation.clients
    return ReportedFederation(
        rounds=tuple(
            ReportedRound(
                record.round,
                record.clients,
                {one.client: one.reason for one in record.rejected},
                record.train_loss,
                record.seconds,
                record.client_shares,
                record.residual_share,
                record.canary_loss,
                record.aborted,
            )
            for record in rounds
        ),
        bytes_down_per_client=findings.sealed.size_bytes + sum(record.bytes_down for record in rounds) // clients,
        bytes_up_per_client=sum(record.bytes_up for record in rounds) // clients,
    )
