"""The plots of the report as SVG text for a page: no files, no scripts, the same text for the same report."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from scaleot_core.compression.plan import LayerRole
from scaleot_core.evaluation import Metrics
from scaleot_core.model_privacy.floors import Floors
from scaleot_core.model_privacy.healing import HealingPoint
from scaleot_core.model_privacy.recovery import recovered_of
from scaleot_core.report.document import MODEL_TITLES, Report, binomial_error
from scaleot_core.report.phrases import MEASURES, headline_share
from scaleot_core.report.svg import (
    BLUE,
    GREY,
    MODEL_COLOURS,
    ORANGE,
    SKY_BLUE,
    VERMILION,
    WIDTH_INCHES,
    legend,
    plot_style,
    svg,
)

_ROLE_COLOURS = {
    LayerRole.ADAPTER: VERMILION,
    LayerRole.KEPT: BLUE,
    LayerRole.REPLACED: ORANGE,
    LayerRole.DROPPED: GREY,
    LayerRole.SHARED: SKY_BLUE,
}
_ROLE_TITLES = {
    LayerRole.ADAPTER: "adapter (exact)",
    LayerRole.KEPT: "kept",
    LayerRole.REPLACED: "replaced by a harmonizer",
    LayerRole.DROPPED: "dropped",
    LayerRole.SHARED: "runs with a kept layer's weights",
}


def results_plot(measured: Mapping[str, Metrics]) -> str:
    """Draws the measured models, by their key: loss, and F1 or accuracy with one standard error where all have it."""
    with plot_style():
        share = _share_of_all(measured.values())
        figure = Figure(figsize=(WIDTH_INCHES, 2.6), layout="constrained")
        axes = figure.subplots(1, 2 if share else 1, sharey=True, squeeze=False)[0]
        axes[0].invert_yaxis()
        if share:
            values = [100 * getattr(metrics, share) for metrics in measured.values()]
            errors = [100 * binomial_error(getattr(each, share), each.examples) for each in measured.values()]
            error = "± at most one standard error" if share == "f1" else "± one standard error"
            _bars(axes[0], measured, values, errors, f"{MEASURES[share].axis_title} ({error})")
        _bars(axes[-1], measured, [metrics.loss for metrics in measured.values()], None, MEASURES["loss"].axis_title)
        return svg(figure)


def layers_plot(report: Report) -> str:
    """Draws the role of every layer, and its importance score where the builder has scores."""
    with plot_style():
        layers, importance = report.emulator.layers, report.emulator.importance
        figure = Figure(figsize=(WIDTH_INCHES, 2.8 if importance else 1.4), layout="constrained")
        axes = figure.subplots()
        heights = importance or [1.0] * len(layers)
        axes.bar([layer.index for layer in layers], heights, color=[_ROLE_COLOURS[layer.role] for layer in layers])
        if importance:
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set_ylabel("importance score")
            axes.grid(axis="y", alpha=0.3)
        else:
            axes.set_yticks([])
        axes.set_xlabel("original layer index")
        axes.set_xlim(-0.7, len(layers) - 0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        present = [role for role in _ROLE_COLOURS if any(layer.role is role for layer in layers)]
        handles = [Patch(color=_ROLE_COLOURS[role], label=_ROLE_TITLES[role]) for role in present]
        legend(figure, handles, columns=len(handles))
        return svg(figure)


def rounds_plot(report: Report) -> str:
    """Draws the clients' mean training loss after each round of a report."""
    return losses_plot({one.round: one.train_loss for one in report.federation.rounds})


def losses_plot(losses: Mapping[int, float | None], label: str = "mean training loss") -> str:
    """Draws the loss of each round, by its number; a round without one leaves a hole."""
    with plot_style():
        figure = Figure(figsize=(WIDTH_INCHES, 2.4), layout="constrained")
        axes = figure.subplots()
        numbers = list(losses)
        axes.margins(y=0.12)
        heights = [float("nan") if loss is None else loss for loss in losses.values()]
        axes.plot(numbers, heights, marker="o", color=MODEL_COLOURS["emulator_tuned"])
        axes.set_xlabel("round")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.set_xlim(min(numbers, default=1) - 0.3, max(numbers, default=1) + 0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        return svg(figure)


def healing_plot(points: Sequence[HealingPoint], floors: Floors, plug_in: Metrics) -> str:
    """Draws what each budget of public text gives back: solid, of the full model; dashed, tuned, of the plug-in."""
    with plot_style():
        figure = Figure(figsize=(WIDTH_INCHES, 2.4), layout="constrained")
        axes = figure.subplots()
        tokens, curves = [point.public_tokens for point in points], []
        headline = _share_of_all([point.zero_shot for point in points]) or "accuracy"
        untuned = [point.recovered for point in points]
        tuned = [recovered_of(plug_in, one.tuned.metrics, floors) if one.tuned else None for one in points]
        for name, colour in ((headline, VERMILION), ("loss", BLUE)):
            for recovered, style, suffix in ((untuned, "-", ""), (tuned, "--", ", tuned: of the plug-in")):
                shares = [getattr(one, name, None) for one in recovered]
                if any(share is not None for share in shares):
                    heights = [float("nan") if share is None else share for share in shares]
                    label = f"{MEASURES[name].name}{suffix}"
                    curves += axes.plot(tokens, heights, style, marker="o", color=colour, label=label)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
        axes.set_xlabel("tokens of public text")
        axes.set_ylabel("share recovered")
        axes.grid(alpha=0.3)
        legend(figure, curves)
        return svg(figure)


def _share_of_all(models: Iterable[Metrics]) -> str | None:
    """Returns the name in ``Metrics`` of the share that all these models are judged by, if there is one."""
    names = {headline_share(metrics) for metrics in models}
    return names.pop() if len(names) == 1 else None


def _bars(
    axes: Any, measured: Mapping[str, Metrics], values: list[float], errors: list[float] | None, label: str
) -> None:
    colours = [MODEL_COLOURS[key] for key in measured]
    names = [MODEL_TITLES[key] for key in measured]
    bars = axes.barh(names, values, xerr=errors, color=colours, error_kw={"linewidth": 1})
    axes.bar_label(bars, fmt="%.1f" if errors else "%.3f", padding=4, fontsize=9)
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    axes.margins(x=0.16)
