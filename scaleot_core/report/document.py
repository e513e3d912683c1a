"""What a run found, as values, and as the one JSON document whose keys are stable: tools read them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scaleot_core.compression.plan import LayerRole
from scaleot_core.evaluation import Metrics
from scaleot_core.privacy.units import PrivacyScope
from scaleot_core.report.files import json_text
from scaleot_core.report.model_privacy import ReportedModelPrivacy

MODEL_TITLES: Mapping[str, str] = {
    "zero_shot": "zero-shot",
    "emulator_zero_shot": "emulator zero-shot",
    "emulator_tuned": "emulator tuned",
    "plug_in": "plug-in",
    "full_fine_tuning": "full fine-tuning",
}
"""The five models in the order of the table, by their key in the document."""


@dataclass(frozen=True)
class Results:
    """The five models on the same held-out examples."""

    zero_shot: Metrics
    emulator_zero_shot: Metrics
    emulator_tuned: Metrics
    plug_in: Metrics
    full_fine_tuning: Metrics | None
    """None if the run file does not ask for the reference."""

    def measured(self) -> dict[str, Metrics]:
        """Returns the models that were measured, by their key, in the order of the table."""
        rows = {key: getattr(self, key) for key in MODEL_TITLES}
        return {key: metrics for key, metrics in rows.items() if metrics is not None}

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {key: metrics.to_json() if (metrics := getattr(self, key)) else None for key in MODEL_TITLES}


@dataclass(frozen=True)
class ReportedLayer:
    """What became of one original layer."""

    index: int
    role: LayerRole
    rank: int | None
    """Kept: the rank of the query projection. Replaced: the width of the harmonizer. Otherwise none."""


@dataclass(frozen=True)
class ReportedEmulator:
    """The emulator, and what it gives away of the full model."""

    builder: str
    parameters: int
    size_bytes: int
    size_share: float
    """Parameters over those of the full model."""
    verbatim_share: float
    """Share of the full model's parameters that leave unchanged."""
    trained_share: float
    """Parameters of the harmonizers in it over those of the full model."""
    layers: tuple[ReportedLayer, ...]
    importance: tuple[float, ...] | None
    """One score for each layer; none if the builder needs no scores."""

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "builder": self.builder,
            "parameters": self.parameters,
            "bytes": self.size_bytes,
            "size_share": self.size_share,
            "verbatim_share": self.verbatim_share,
            "trained_share": self.trained_share,
            "layers": [{"index": layer.index, "role": layer.role.value, "rank": layer.rank} for layer in self.layers],
            "importance": None if self.importance is None else list(self.importance),
        }


@dataclass(frozen=True)
class ReportedRound:
    """One round."""

    round: int
    clients: tuple[str, ...]
    """Those whose updates went in."""
    rejected: Mapping[str, str]
    """The stable reason code by client, of those that were refused."""
    train_loss: float | None
    """The example-weighted mean over the clients; none if no update went in."""
    seconds: float
    client_shares: Mapping[str, float] = field(default_factory=dict)
    """What each client counts for in the adapter; empty where the rule of aggregation does not choose."""
    residual_share: float | None = None
    """Of the aggregation ``product`` alone: what the rank had no room for, of the mean's Frobenius norm."""
    canary_loss: float | None = None
    """The adapter's loss on the owner's canary; none without one."""
    aborted: str | None = None
    """Why the canary threw the round's adapter away, so that its base was kept; none if it did not."""

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values; the last four only where rule of aggregation or canary have them."""
        document = {
            "round": self.round,
            "clients": list(self.clients),
            "rejected": [{"client": client, "reason": reason} for client, reason in self.rejected.items()],
            "train_loss": self.train_loss,
            "seconds": self.seconds,
        }
        if self.client_shares:
            document["client_shares"] = dict(self.client_shares)
        if self.residual_share is not None:
            document["residual_share"] = self.residual_share
        if self.canary_loss is not None:
            document["canary_loss"] = self.canary_loss
        if self.aborted is not None:
            document["aborted"] = self.aborted
        return document


@dataclass(frozen=True)
class ReportedFederation:
    """The rounds, and what crossed the wire for one client over the whole run, the emulator included."""

    rounds: tuple[ReportedRound, ...]
    bytes_down_per_client: int
    bytes_up_per_client: int

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "rounds": [one.to_json() for one in self.rounds],
            "bytes_down_per_client": self.bytes_down_per_client,
            "bytes_up_per_client": self.bytes_up_per_client,
        }


@dataclass(frozen=True)
class ReportedBundle:
    """The sealed bundle."""

    size_bytes: int
    digest: str
    recipients: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {"bytes": self.size_bytes, "digest": self.digest, "recipients": list(self.recipients)}


@dataclass(frozen=True)
class ReportedPrivacy:
    """What the data owners' mechanism guarantees; with mechanism none, nothing."""

    mechanism: str
    epsilon_spent: float | None
    delta: float | None
    scope: PrivacyScope | None
    """What every epsilon here is about."""
    clients: tuple[Mapping[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "mechanism": self.mechanism,
            "epsilon_spent": self.epsilon_spent,
            "delta": self.delta,
            **(dict.fromkeys(("unit", "neighbouring", "sampling")) if self.scope is None else self.scope.to_json()),
            "clients": [dict(client) for client in self.clients],
        }


@dataclass(frozen=True)
class StageSeconds:
    """Wall time of the stages; ``total`` has what lies between them, too."""

    load: float
    importance: float
    build: float
    seal: float
    open: float
    train: float
    aggregate: float
    evaluate: float
    total: float

    def to_json(self) -> dict[str, float]:
        """Returns plain JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Report:
    """Everything a run found and the settings that led to it."""

    results: Results
    emulator: ReportedEmulator
    federation: ReportedFederation
    bundle: ReportedBundle
    privacy: ReportedPrivacy
    model_privacy: ReportedModelPrivacy
    seconds: StageSeconds
    peak_memory_bytes: int
    config: Mapping[str, Any]
    """The resolved run file as plain JSON values."""
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Returns the document; its keys are stable."""
        return {
            "results": self.results.to_json(),
            "emulator": self.emulator.to_json(),
            "federation": self.federation.to_json(),
            "bundle": self.bundle.to_json(),
            "privacy": self.privacy.to_json(),
            "model_privacy": self.model_privacy.to_json(
                verbatim_share=self.emulator.verbatim_share,
                plug_in=self.results.plug_in,
                emulator_tuned=self.results.emulator_tuned,
            ),
            "seconds": self.seconds.to_json(),
            "peak_memory_bytes": self.peak_memory_bytes,
            "config": dict(self.config),
            "versions": dict(self.versions),
        }

    def to_text(self) -> str:
        """Returns the document as JSON text; a number that is not finite, which JSON cannot hold, becomes null."""
        return json_text(self.to_json())


def accuracy_error(metrics: Metrics) -> float | None:
    """Returns the standard error of an accuracy over so many examples; none without an accuracy."""
    return None if metrics.accuracy is None else binomial_error(metrics.accuracy, metrics.examples)


def binomial_error(share: float, examples: int) -> float:
    """Returns the standard error of a share of so many examples; of a mean F1, the most that it can be.

    No figure from 0 to 1 has a larger variance about its mean than one that is either.
    """
    return math.sqrt(share * (1 - share) / examples)
