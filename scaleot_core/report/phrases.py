"""How figures read: the words that the table and the page share."""

from collections.abc import Sequence

from scaleot_core.evaluation import Metrics
from scaleot_core.report.document import Report, accuracy_error

RUNNERS = {
    "zero_shot": "model owner",
    "emulator_zero_shot": "data owner",
    "emulator_tuned": "data owner",
    "plug_in": "model owner",
    "full_fine_tuning": "nobody (reference)",
}
"""Who could run each of the five models in earnest."""

_MEASURES = {
    "loss": ("loss", 1, 4),
    "perplexity": ("perplexity", 1, 2),
    "accuracy": ("accuracy %", 100, 1),
    "accuracy_norm": ("acc_norm %", 100, 1),
    "f1": ("F1 %", 100, 1),
}
"""By the name in ``Metrics``: title, factor and decimals."""


def columns(report: Report) -> dict[str, str]:
    """Returns the titles of the measures that any of the five models has, by their name in ``Metrics``."""
    measured = report.results.measured().values()
    return {
        name: title
        for name, (title, _, _) in _MEASURES.items()
        if any(getattr(metrics, name) is not None for metrics in measured)
    }


def figure(metrics: Metrics, name: str) -> str:
    """Returns one measure of one model, an accuracy with its standard error."""
    value = getattr(metrics, name)
    if value is None:
        return ""
    _, factor, decimals = _MEASURES[name]
    error = accuracy_error(metrics) if name == "accuracy" else None
    return f"{factor * value:.{decimals}f}" + (f" ± {100 * error:.1f}" if error is not None else "")


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
    if privacy.epsilon_spent is None:
        return f"mechanism {privacy.mechanism}: no guarantee; updates can leak training text"
    return f"{privacy.mechanism}, epsilon {privacy.epsilon_spent:g} at delta {privacy.delta:g}, unit {privacy.unit}"


def seconds_line(report: Report) -> str:
    """Says how long each stage took."""
    return ", ".join(f"{stage} {value:.1f}" for stage, value in report.seconds.to_json().items())


def percent(share: float) -> str:
    """Returns a share as a percentage."""
    return f"{100 * share:.1f} %"


def megabytes(size_bytes: int) -> str:
    """Returns a size in megabytes of a million bytes, in kilobytes where it is small."""
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1_000_000 else f"{size_bytes / 1e3:.1f} kB"


def counted(count: int, noun: str) -> str:
    """Returns a count with its noun."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _comparison(plug_in: Metrics, other: Metrics, name: str) -> str:
    losses = f"loss {plug_in.loss:.3f} against {other.loss:.3f}"
    if plug_in.accuracy is None or other.accuracy is None:
        return f"plug-in against {name}: {losses}"
    points = 100 * (plug_in.accuracy - other.accuracy)
    errors = [100 * (accuracy_error(metrics) or 0.0) for metrics in (plug_in, other)]
    double_error = 2 * _root_of_squares(errors)
    verdict = "beyond" if abs(points) > double_error else "within"
    return f"plug-in against {name}: {points:+.1f} points ({verdict} two standard errors, {double_error:.1f}), {losses}"


def _root_of_squares(values: Sequence[float]) -> float:
    return float(sum(value**2 for value in values) ** 0.5)
