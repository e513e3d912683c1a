"""The plots of a comparison; each is there only where its axis varies."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from scaleot_core.report.comparison import (
    BUILDER,
    TASK,
    ComparedRow,
    Comparison,
    common_labels,
    distinguishing_labels,
    front_rows,
    grouped,
)
from scaleot_core.report.comparison_phrases import SETTING_TITLES, row_name, settings_line
from scaleot_core.report.document import MODEL_TITLES
from scaleot_core.report.phrases import MEASURES, counted
from scaleot_core.report.svg import GREY, MODEL_COLOURS, PALETTE, WIDTH_INCHES, legend, plot_style, svg

ALPHA, BETA = "emulator.replaced_layer_share", "emulator.removed_rank_share"
RANK_TARGET = "emulator.rank_target"

_SWEPT_MODELS = ("plug_in", "emulator_tuned", "emulator_zero_shot")
_FLOORS = ("zero_shot", "full_fine_tuning")
_RANK_TARGET_TITLES = {"attention": "rank of attention", "ffn": "rank of the FFN", "both": "rank of both"}
_MOST_COMBINATIONS = 6
"""How many settings of what is not on the axis a sweep draws, each in panels of its own."""


@dataclass(frozen=True)
class CaptionedPlot:
    """A plot as SVG, and what it shows."""

    svg: str
    caption: str


@dataclass(frozen=True)
class _Line:
    label: str
    colour: str
    model: str
    rows: tuple[ComparedRow, ...]


@dataclass(frozen=True)
class _Panel:
    title: str
    lines: tuple[_Line, ...]
    heading: str = ""
    """What tells its setting of the rest from the others; at the first panel of each."""


STAGE_ONE = ""
"""In place of a task, for the plots that are of every task's emulators."""


def comparison_plots(comparison: Comparison) -> dict[tuple[str, str], CaptionedPlot]:
    """Draws every plot that has something to show, by its kind and task, each task's in the page's order."""
    plots: dict[tuple[str, str], CaptionedPlot | None] = {}
    for task, rows in comparison.blocks.items():
        plots["alpha", task] = alpha_plot(rows)
        plots["beta", task] = beta_plot(rows)
        plots["front", task] = front_plot(rows)
    plots["importance", STAGE_ONE] = importance_plot(comparison)
    plots["cost", STAGE_ONE] = cost_plot(comparison)
    return {key: plot for key, plot in plots.items() if plot is not None}


def plot_files(comparison: Comparison, plots: Mapping[tuple[str, str], CaptionedPlot]) -> dict[str, str]:
    """Returns each of ``comparison_plots`` as a file, its caption within, by name: a task's is called after it."""
    files = {}
    for (kind, task), plot in plots.items():
        name = f"{kind}-{task}.svg" if task in comparison.tasks else f"{kind}.svg"
        files[name] = plot.svg.replace(">", f"><desc>{escape(plot.caption)}</desc>", 1)
    return files


def alpha_plot(rows: Sequence[ComparedRow]) -> CaptionedPlot | None:
    """Draws plug-in and emulator of one task against the share of replaced layers, panels for the rest."""
    return _sweep_plot(rows, ALPHA, "alpha: share of the non-adapter layers that is replaced or left out")


def beta_plot(rows: Sequence[ComparedRow]) -> CaptionedPlot | None:
    """Draws plug-in and emulator of one task against the share of rank removed, one panel for each rank target."""
    return _sweep_plot(rows, BETA, "beta: share of the rank that is removed", panels_of=RANK_TARGET)


def front_plot(rows: Sequence[ComparedRow]) -> CaptionedPlot | None:
    """Draws the plug-in of one task's rows against the verbatim share, with the Pareto front."""
    shown = [row for row in rows if row.headline("plug_in") is not None]
    if len({row.verbatim_share for row in shown}) < 2:
        return None
    with plot_style():
        figure = Figure(figsize=(WIDTH_INCHES, 3.4), layout="constrained")
        axes = figure.subplots()
        front, colours = front_rows(rows), _builder_colours(rows)
        axes.step(_verbatim(front), _means(front, "plug_in"), "--", where="post", color=GREY, linewidth=1)
        for row in shown:
            _draw_dot(axes, row, colours[row.builder], is_filled=row in front)
        axes.set_xlabel("verbatim share, % of the full model (less gives away less)")
        axes.set_ylabel(f"plug-in: {MEASURES[rows[0].measure].axis_title}")
        axes.grid(alpha=0.3)
        _scale_measure(axes, rows[0].measure, _means(shown, "plug_in"))
        legend(figure, [*_markers(colours), _dashes("Pareto front", GREY)])
        names = "; ".join(row_name(row) for row in front)
        caption = (
            f"Quality against what leaves unchanged. On the front (filled), the least share first: {names or 'no row'}."
        )
        return CaptionedPlot(svg(figure), caption)


def importance_plot(comparison: Comparison) -> CaptionedPlot | None:
    """Draws the importance score of every layer, one panel for each set of scores that was used."""
    scored = [row for row in comparison.rows if row.importance is not None]
    groups: dict[tuple[float, ...], list[ComparedRow]] = {}
    for row in scored:
        groups.setdefault(row.importance or (), []).append(row)
    if not groups:
        return None
    with plot_style():
        figure = Figure(figsize=(WIDTH_INCHES, 0.6 + 1.8 * len(groups)), layout="constrained")
        panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (scores, rows) in zip(panels, groups.items(), strict=True):
            axes.bar(range(len(scores)), scores, color=MODEL_COLOURS["emulator_tuned"])
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set_ylabel("importance")
            axes.grid(axis="y", alpha=0.3)
            axes.set_title(settings_line(distinguishing_labels(rows, scored)), fontsize=10, loc="left")
        panels[-1].set_xlabel("original layer index")
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        return CaptionedPlot(svg(figure), "Importance score of each layer: the higher, the harder to replace.")


def cost_plot(comparison: Comparison) -> CaptionedPlot | None:
    """Draws the seconds of stage 1 of every emulator, builder by builder."""
    known = [row for row in comparison.rows if row.stage_one_seconds]
    colours = {name: colour for name, colour in _builder_colours(comparison.rows).items() if _of(known, name)}
    if len(colours) < 2:
        return None
    with plot_style():
        figure = Figure(figsize=(WIDTH_INCHES, 0.8 + 0.35 * len(colours)), layout="constrained")
        axes = figure.subplots()
        for builder, colour in colours.items():
            seconds = [row.stage_one_seconds or math.nan for row in _of(known, builder)]
            axes.plot(seconds, [builder] * len(seconds), "o", color=colour, alpha=0.7)
        axes.invert_yaxis()
        axes.set_xscale("log")
        _plain_ticks(axes.xaxis, [row.stage_one_seconds or math.nan for row in known])
        axes.set_xlabel("seconds of stage 1 (importance and build, each when it was computed)")
        axes.grid(alpha=0.3)
        axes.margins(x=0.08, y=0.15)
        caption = (
            "Cost of an emulator, in seconds as they were when each part was computed: importance on the machine that "
            "learnt it, the rest in this run. Importance, once learnt, serves every emulator of its model."
        )
        return CaptionedPlot(svg(figure), caption)


def _sweep_plot(rows: Sequence[ComparedRow], key: str, label: str, panels_of: str = "") -> CaptionedPlot | None:
    combinations = _combinations(rows, key, panels_of)
    if not combinations:
        return None
    headings = [settings_line(distinguishing_labels(group, rows)) for group in combinations]
    drawn = list(itertools.chain(*combinations[:_MOST_COMBINATIONS]))
    measure = MEASURES[drawn[0].measure]
    with plot_style():
        grid = _grid(combinations[:_MOST_COMBINATIONS], headings[:_MOST_COMBINATIONS], panels_of)
        figure = Figure(figsize=(WIDTH_INCHES, 0.9 + 2.2 * len(grid)), layout="constrained")
        subplots = figure.subplots(len(grid), len(grid[0]), sharex=True, sharey=True, squeeze=False)
        for line_of_axes, panels in zip(subplots, grid, strict=True):
            for axes, panel in zip(line_of_axes, panels, strict=True):
                _draw_panel(axes, panel, key)
            line_of_axes[0].set_ylabel(measure.axis_title)
        means = [mean for model in _SWEPT_MODELS for mean in _means(drawn, model)]
        _scale_measure(subplots[0, 0], drawn[0].measure, means)
        figure.supxlabel(label, fontsize=10)
        colours = {line.label: line.colour for line in grid[0][0].lines}
        floors = [model for model in _FLOORS if any(row.headline(model) for row in drawn)]
        dashes = [_dashes(MODEL_TITLES[model], MODEL_COLOURS[model]) for model in floors]
        legend(figure, [*_markers(colours), *dashes])
        fixed = {name: value for name, value in common_labels(rows).items() if name not in (TASK, BUILDER, panels_of)}
        held = f"; the rest fixed at {settings_line(fixed)}" if fixed else ""
        shown = f"Plug-in and emulator against {SETTING_TITLES[key]}, ± one standard deviation{held}."
        return CaptionedPlot(svg(figure), shown + _left_out(headings[_MOST_COMBINATIONS:]))


def _combinations(rows: Sequence[ComparedRow], key: str, panels_of: str) -> list[list[ComparedRow]]:
    """Returns the rows of every setting of all but these two keys, where the first one varies."""
    names = (key, panels_of)
    groups = grouped(rows, lambda row: {name: value for name, value in row.settings.items() if name not in names})
    return [group for group in groups if len({row.settings.get(key) for row in group}) > 1]


def _left_out(headings: Sequence[str]) -> str:
    if not headings:
        return ""
    names = "; ".join(headings[:3]) + (" and others" if len(headings) > 3 else "")
    return f" Not drawn, but in the table: {counted(len(headings), 'more setting')} ({names})."


def _grid(combinations: Sequence[Sequence[ComparedRow]], headings: Sequence[str], panels_of: str) -> list[list[_Panel]]:
    """Returns the panels: rank targets side by side, combinations below one another, each under its heading.

    Models are lines where every combination has one builder, else panels, and builders are the lines.
    """
    rows = list(itertools.chain(*combinations))
    targets = dict.fromkeys(row.settings.get(panels_of, "") for row in rows)
    has_lines_of_models = all(len({row.builder for row in group}) == 1 for group in combinations)
    grid = []
    for heading, group in zip(headings, combinations, strict=True):
        by_target = {
            _RANK_TARGET_TITLES.get(target, ""): [row for row in group if row.settings.get(panels_of, "") == target]
            for target in targets
        }
        if has_lines_of_models:
            panels = [[_panel_of_models(title, own) for title, own in by_target.items()]]
        else:
            panels = _panels_of_builders(by_target, _builder_colours(rows))
        panels[0][0] = replace(panels[0][0], heading=heading)
        grid += panels
    return grid


def _panels_of_builders(
    by_target: Mapping[str, Sequence[ComparedRow]], colours: Mapping[str, str]
) -> list[list[_Panel]]:
    panels = [
        [_panel_of_builders(title, own, model, colours) for title, own in by_target.items()] for model in _SWEPT_MODELS
    ]
    return panels if len(by_target) > 1 else [[panel for line in panels for panel in line]]


def _panel_of_models(title: str, rows: Sequence[ComparedRow]) -> _Panel:
    lines = [_Line(MODEL_TITLES[model], MODEL_COLOURS[model], model, tuple(rows)) for model in _SWEPT_MODELS]
    return _Panel(title, tuple(lines))


def _panel_of_builders(title: str, rows: Sequence[ComparedRow], model: str, colours: Mapping[str, str]) -> _Panel:
    lines = [_Line(builder, colour, model, tuple(_of(rows, builder))) for builder, colour in colours.items()]
    return _Panel("\n".join(part for part in (MODEL_TITLES[model], title) if part), tuple(lines))


def _draw_panel(axes: Any, panel: _Panel, key: str) -> None:
    any_row = [row for line in panel.lines for row in line.rows][:1]
    for model in _FLOORS:
        for height in _means(any_row, model):
            axes.axhline(height, color=MODEL_COLOURS[model], linestyle="--", linewidth=1)
    for line in panel.lines:
        measured = sorted((row for row in line.rows if row.headline(line.model)), key=lambda row: row.settings[key])
        axes.errorbar(
            [row.settings[key] for row in measured],
            _means(measured, line.model),
            yerr=_deviations(measured, line.model),
            color=line.colour,
            marker="o",
            markersize=4,
            linewidth=1.3,
            capsize=2,
        )
    axes.set_title(panel.title, fontsize=10)
    if panel.heading:  # above the titles of its row, over the whole width
        axes.set_title(panel.heading + "\n" * len(panel.title.splitlines()), fontsize=10, loc="left")
    axes.grid(alpha=0.3)


def _draw_dot(axes: Any, row: ComparedRow, colour: str, *, is_filled: bool) -> None:
    axes.errorbar(
        _verbatim([row]),
        _means([row], "plug_in"),
        yerr=_deviations([row], "plug_in"),
        fmt="o",
        color=colour,
        markerfacecolor=colour if is_filled else "white",
        linewidth=1,
        capsize=2,
    )


def _of(rows: Sequence[ComparedRow], builder: str) -> list[ComparedRow]:
    return [row for row in rows if row.builder == builder]


def _builder_colours(rows: Sequence[ComparedRow]) -> dict[str, str]:
    return dict(zip(dict.fromkeys(row.builder for row in rows), itertools.cycle(PALETTE), strict=False))


def _verbatim(rows: Sequence[ComparedRow]) -> list[float]:
    return [100 * row.verbatim_share for row in rows]


def _means(rows: Sequence[ComparedRow], model: str) -> list[float]:
    """Returns the mean headline figures of the rows that have one, in the unit of the plots."""
    spreads = [(row.measure, row.headline(model)) for row in rows]
    return [MEASURES[measure].factor * spread.mean for measure, spread in spreads if spread is not None]


def _deviations(rows: Sequence[ComparedRow], model: str) -> list[float]:
    """Returns the deviations of the same rows, 0 where one seed has none."""
    spreads = [(row.measure, row.headline(model)) for row in rows]
    return [MEASURES[measure].factor * (spread.deviation or 0.0) for measure, spread in spreads if spread is not None]


def _scale_measure(axes: Any, measure: str, means: Sequence[float]) -> None:
    """Makes the axis of a perplexity logarithmic where it spans more than a factor of ten."""
    if measure == "perplexity" and means and max(means) > 10 * min(means):
        axes.set_yscale("log")
        _plain_ticks(axes.yaxis, means)


def _plain_ticks(axis: Any, values: Sequence[float]) -> None:
    """Labels a logarithmic axis at powers of ten, and between them where there is room, without formulas."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < 1000 * min(values) else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _markers(colours: Mapping[str, str]) -> list[Line2D]:
    return [Line2D([], [], color=colour, marker="o", label=label) for label, colour in colours.items()]


def _dashes(label: str, colour: str) -> Line2D:
    return Line2D([], [], color=colour, linestyle="--", label=label)
