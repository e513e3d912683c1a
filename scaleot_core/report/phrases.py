"""How figures read: the words that the table and the page share."""

import math
import statistics
from dataclasses import dataclass

from scaleot_core.evaluation import Metrics
from scaleot_core.figures import no_less
from scaleot_core.report.document import Report, accuracy_error

RUNNERS = {
    "zero_shot": "model owner",
    "emulator_zero_shot": "data owner",
    "emulator_tuned": "data owner",
    "plug_in": "model owner",
    "full_fine_tuning": "nobody (reference)",
}
"""Who could run each of the five models in earnest."""


@dataclass(frozen=True)
class Measure:
    """How one measure of a model reads."""

    name: str
    is_share: bool
    """From 0 to 1 and more is better, shown in percent; of every other measure less is better."""
    decimals: int

    @property
    def factor(self) -> int:
        """What a value is multiplied by to be shown."""
        return 100 if self.is_share else 1

    @property
    def title(self) -> str:
        """The head of a column."""
        return f"{self.name} %" if self.is_share else self.name

    @property
    def axis_title(self) -> str:
        """The words beside an axis."""
        return f"{self.name}, %" if self.is_share else f"{self.name} (less is better)"

    def text(self, value: float, *, sign: str = "") -> str:
        """Returns a value as it is shown; with the sign "+" it always has one."""
        return f"{self.factor * value:{sign}z.{self.decimals}f}"


MEASURES = {
    "loss": Measure("loss", is_share=False, decimals=4),
    "perplexity": Measure("perplexity", is_share=False, decimals=2),
    "accuracy": Measure("accuracy", is_share=True, decimals=1),
    "accuracy_norm": Measure("acc_norm", is_share=True, decimals=1),
    "f1": Measure("F1", is_share=True, decimals=1),
}
"""By the name in ``Metrics``."""

HEADLINE_SHARES = ("f1", "accuracy")
"""The shares that a task is judged by, the first that it has: an answer may be near the right one and match none."""


def headline_share(metrics: Metrics) -> str | None:
    """Returns the name in ``Metrics`` of the share that a model is judged by; none of a task without one."""
    return next((name for name in HEADLINE_SHARES if getattr(metrics, name) is not None), None)


def columns(report: Report) -> dict[str, str]:
    """Returns the titles of the measures that any of the five models has, by their name in ``Metrics``."""
    measured = report.results.measured().values()
    return {
        name: measure.title
        for name, measure in MEASURES.items()
        if any(getattr(metrics, name) is not None for metrics in measured)
    }


def figure(metrics: Metrics, name: str) -> str:
    """Returns one measure of one model, an accuracy with its standard error."""
    value = getattr(metrics, name)
    if value is None:
        return ""
    measure, error = MEASURES[name], accuracy_error(metrics) if name == "accuracy" else None
    return measure.text(value) + ("" if error is None else f" ± {measure.text(error)}")


def findings(report: Report) -> list[str]:
    """Says how the plug-in stands to zero-shot, to the tuned emulator (the gap) and to the reference."""
    results = report.results
    pairs = [("zero-shot", results.zero_shot), ("the tuned emulator", results.emulator_tuned)]
    if results.full_fine_tuning is not None:
        pairs.append(("full fine-tuning", results.full_fine_tuning))
    return [_comparison(results.plug_in, other, name) for name, other in pairs]


def emulator_line(report: Report) -> str:
    """Says what the emulator weighs and what it gives away."""
    emulator = report.emulator
    return (
        f"{emulator.builder}, {emulator.parameters / 1e6:.1f} M parameters, {megabytes(emulator.size_bytes)}, "
        f"{percent(emulator.size_share)} of the full model; {percent(emulator.verbatim_share)} of the full model's "
        "parameters leave unchanged"
    )


def traffic_line(report: Report) -> str:
    """Says what each client moved."""
    federation = report.federation
    return (
        f"down {megabytes(federation.bytes_down_per_client)}, up {megabytes(federation.bytes_up_per_client)} "
        f"in {counted(len(federation.rounds), 'round')}, sealed bundle included"
    )


def refusals_line(report: Report) -> str | None:
    """Says how many updates were refused and why, or nothing."""
    reasons = [reason for one in report.federation.rounds for reason in one.rejected.values()]
    if not reasons:
        return None
    return f"{counted(len(reasons), 'update')} refused: {', '.join(sorted(set(reasons)))}"


def privacy_line(report: Report) -> str:
    """Says what the data owners' mechanism guarantees."""
    privacy = report.privacy
    if privacy.epsilon_spent is None or privacy.delta is None or privacy.scope is None:
        return f"mechanism {privacy.mechanism}: no guarantee; updates can leak training text"
    spent = f"epsilon {no_less(privacy.epsilon_spent)} {privacy.scope.at_delta(privacy.delta)}"
    if privacy.mechanism == "client-level":  # the server's noise: there is no ledger
        return f"{privacy.mechanism}, {spent}"
    return f"{privacy.mechanism}, {spent}; by the accepted updates: what was refused or lost counts in the ledgers too"


def seconds_line(report: Report) -> str:
    """Says how long each stage took, and measuring model privacy, which is none of them."""
    stages = report.seconds.to_json()
    total = stages.pop("total")
    took = {**stages, "model privacy": report.model_privacy.seconds, "total": total}
    return ", ".join(f"{stage} {value:.1f}" for stage, value in took.items())


def percent(share: float) -> str:
    """Returns a share as a percentage."""
    return f"{100 * share:.1f} %"


def points(difference: float, *, sign: str = "") -> str:
    """Returns a difference of two shares in percentage points; with the sign "+" it always has one."""
    return f"{100 * difference:{sign}z.1f} points"


def megabytes(size_bytes: int) -> str:
    """Returns a size in megabytes of a million bytes, in kilobytes where it is small."""
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1_000_000 else f"{size_bytes / 1e3:.1f} kB"


def counted(count: int, noun: str) -> str:
    """Returns a count with its noun."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _comparison(plug_in: Metrics, other: Metrics, name: str) -> str:
    losses = f"loss {plug_in.loss:.3f} against {other.loss:.3f}"
    if plug_in.by_record is None or other.by_record is None or plug_in.examples == 1:
        return f"plug-in against {name}: {losses}"
    gains = [ours - theirs for ours, theirs in zip(plug_in.by_record, other.by_record, strict=True)]
    gap, double_error = statistics.fmean(gains), 2 * statistics.stdev(gains) / math.sqrt(len(gains))
    side = "beyond" if abs(gap) > double_error else "within"
    verdict = f"{side} two standard errors of the difference, {100 * double_error:.1f}"
    shown = f"{points(gap, sign='+')}{' of F1' if plug_in.f1 is not None else ''}"
    return f"plug-in against {name}: {shown} ({verdict}), {losses}"
