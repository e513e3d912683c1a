"""How the figures of a comparison read: the words that its table and its page share."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from scaleot_core.privacy.units import PrivacyScope
from scaleot_core.report.comparison import (
    TUNED,
    ComparedRow,
    Comparison,
    Floor,
    Point,
    Spread,
    attack_title,
    attacks_measured,
    best_row,
    grouped,
)
from scaleot_core.report.document import MODEL_TITLES, binomial_error
from scaleot_core.report.phrases import MEASURES, counted, percent, points

PLUG_IN_COLUMN = MODEL_TITLES["plug_in"]

TEXT_COLUMNS = ("builder", "variant")
"""Columns of words, not of figures."""

SETTING_TITLES = {
    "emulator.num_adapter_layers": "N_a",
    "emulator.replaced_layer_share": "alpha",
    "emulator.removed_rank_share": "beta",
}
"""The paper's letters by the run file's key; every other setting has its key for a name."""

DELTA_NOTE = "delta: plug-in minus emulator tuned, seed by seed"
ATTACKS_NOTE = (
    "strong emulator: all of it tuned on the data owners' pooled text; healed: tuned on public text, then, where the "
    "strong emulator was measured, likewise"
)

_SAME_FOR_EVERY_SEED = ("zero_shot", "emulator_zero_shot", "majority")


def table_cells(rows: Sequence[ComparedRow]) -> list[dict[str, str]]:
    """Returns the rows of a task's table, each by the titles of its columns, which all rows have."""
    attacks = attacks_measured(rows)
    return [_cells(row, attacks) for row in rows]


def notes(rows: Sequence[ComparedRow]) -> str:
    """Says what the columns of a table are that do not say it themselves, and what each budget of privacy is about."""
    measured = attacks_measured(rows)
    budgets = grouped([budget for row in rows for budget in row.budgets], lambda budget: budget)
    return "; ".join([DELTA_NOTE, *([ATTACKS_NOTE] if measured else []), *(_budget_text(same[0]) for same in budgets)])


def origin_lines(points: Sequence[Point]) -> list[str]:
    """Says on which machines the points' results were computed, and when; nothing of points that do not tell."""
    dates: dict[str, list[str]] = {}
    for origin in (origin for point in points for origin in point.get("origins", ())):
        dates.setdefault(origin["machine"], []).append(origin["date"])
    return [f"Computed on {machine}: {_period(min(found), max(found))}." for machine, found in dates.items()]


def _period(first: str, last: str) -> str:
    return first if first == last else f"{first} to {last}"


def _budget_text(budget: Mapping[str, Any]) -> str:
    about = PrivacyScope.from_json(budget).at_delta(budget["delta"])
    return f"{budget['mechanism']}: epsilon up to {budget['epsilon']:g} {about}"


def _cells(row: ComparedRow, attacks: Sequence[str]) -> dict[str, str]:
    return {
        "builder": row.builder,
        **{SETTING_TITLES.get(key, key): setting_text(value) for key, value in row.settings.items()},
        MODEL_TITLES["emulator_zero_shot"]: headline_text(row, "emulator_zero_shot"),
        MODEL_TITLES["emulator_tuned"]: headline_text(row, "emulator_tuned"),
        **{attack_title(model): headline_text(row, model) for model in attacks},
        PLUG_IN_COLUMN: headline_text(row, "plug_in"),
        "delta": spread_text(row.delta, row.measure, sign="+") if row.delta else "",
        "verbatim share": percent(row.verbatim_share),
        "stage-1 seconds": "unknown" if row.stage_one_seconds is None else f"{row.stage_one_seconds:.1f}",
    }


def headline_text(row: ComparedRow, model: str) -> str:
    """Returns the headline figure of a model or attack, with its deviation where the seed makes a difference to it."""
    spread = row.headline(model)
    if spread is None:
        return "failed" if row.failures and model in TUNED else ""
    return spread_text(spread, row.measure, deviation=model not in _SAME_FOR_EVERY_SEED)


def spread_text(spread: Spread, measure: str, *, deviation: bool = True, sign: str = "") -> str:
    """Returns a mean in the unit of its measure, with its deviation where there is one to show."""
    reads, shown = MEASURES[measure], spread.deviation if deviation else None
    return reads.text(spread.mean, sign=sign) + ("" if shown is None else f" ± {reads.text(shown)}")


def floor_text(floor: Floor, measure: str) -> str:
    """Returns the figure of a floor, with its deviation where the seed makes a difference to that model."""
    return spread_text(floor.spread, measure, deviation=floor.model not in _SAME_FOR_EVERY_SEED)


def setting_text(value: Any) -> str:
    """Returns the value of a setting."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def settings_line(settings: Mapping[str, Any]) -> str:
    """Returns settings in one line."""
    return ", ".join(f"{SETTING_TITLES.get(key, key)} {setting_text(value)}" for key, value in settings.items())


def row_name(row: ComparedRow) -> str:
    """Returns what a row is called within its task."""
    return ", ".join(part for part in (row.builder, settings_line(row.settings)) if part)


def task_line(rows: Sequence[ComparedRow]) -> str:
    """Says what one task's figures are."""
    seeds = len(rows[0].seeds)
    spread = f"± one standard deviation over {seeds} seeds" if seeds > 1 else "one seed, so no deviations"
    return f"{MEASURES[rows[0].measure].axis_title}, on {counted(rows[0].examples, 'held-out example')}; {spread}"


def failure_lines(rows: Sequence[ComparedRow]) -> list[str]:
    """Says of each row of a task with failed seeds how many failed and why."""
    return [
        f"{row_name(row)}: {len(row.failures)} of {counted(len(row.seeds), 'run')} failed: "
        + "; ".join(dict.fromkeys(row.failures))
        for row in rows
        if row.failures
    ]


def finding(rows: Sequence[ComparedRow]) -> str:
    """Says which row of a task has the best plug-in, and how it stands to the reference and to secrecy."""
    best = best_row(rows)
    if best is None:
        return "in every row a run failed: there is no best plug-in"
    parts = [f"the best plug-in is {headline_text(best, 'plug_in')} ({row_name(best)})"]
    if best.share_of_full_fine_tuning is not None:
        parts.append(f"{percent(best.share_of_full_fine_tuning.mean)} of full fine-tuning")
    if best.delta is not None:
        parts.append(f"delta {spread_text(best.delta, best.measure, sign='+')}")
    return ", ".join([*parts, f"verbatim share {percent(best.verbatim_share)}"])


def limits(comparison: Comparison) -> list[str]:
    """Says what nobody should conclude from these very figures."""
    tasks = [comparison.of_task(task) for task in comparison.tasks]
    found = [_scope_limit(comparison), _seeds_limit(comparison.rows)]
    for rows in tasks:
        found += [limit for limit in (_examples_limit(rows), _order_limit(rows), _promise_limit(rows)) if limit]
    failed = sum(len(row.failures) for row in comparison.rows)
    if failed:
        runs = sum(len(row.seeds) for row in comparison.rows)
        found.append(
            f"{failed} of {counted(runs, 'run')} failed and count in no mean: what is left of their rows is too good."
        )
    if any(row.stage_one_seconds is None for row in comparison.rows):
        found.append("A stage-1 cost is unknown where importance came ready-made: that does not mean it was free.")
    return [*found, _privacy_limit(comparison.rows)]


def _scope_limit(comparison: Comparison) -> str:
    tasks = f"{counted(len(comparison.tasks), 'task')} ({', '.join(comparison.tasks)})"
    return f"One model, {comparison.config['model']['source']}, and {tasks}: another model or task may turn the order."


def _seeds_limit(rows: Sequence[ComparedRow]) -> str:
    seeds = min(len(row.seeds) for row in rows)
    if seeds == 1:
        return "One seed: nothing says how far another seed would move any figure."
    # The relative standard error of a normal sample's standard deviation, to first order.
    return (
        f"A deviation over {seeds} seeds is itself known to about {percent(1 / math.sqrt(2 * (seeds - 1)))} only, and "
        "knows nothing of stage 1: a row has one emulator, whatever the seed."
    )


def _examples_limit(rows: Sequence[ComparedRow]) -> str | None:
    best = best_row(rows)
    if best is None or not MEASURES[best.measure].is_share or best.quality is None:
        return None
    error = points(binomial_error(best.quality, best.examples))
    limit = (
        f"{best.task}: {counted(best.examples, 'held-out example')} alone leave an {MEASURES[best.measure].name} of "
        f"{percent(best.quality)} uncertain by {'at most ' if best.measure == 'f1' else ''}{error} (one standard "
        "error), whatever the seeds agree on"
    )
    whole = sum(row.quality is not None for row in rows)
    chosen = f", and the best of {whole} rows was chosen on these same examples" if whole > 1 else ""
    return f"{limit}{chosen}."


def _order_limit(rows: Sequence[ComparedRow]) -> str | None:
    best = best_row(rows)
    others = [row for row in rows if row is not best and row.quality is not None]
    if best is None or not others or _standard_error(best) is None:
        return None
    close = [row for row in others if _is_within_two_errors(row, best)]
    if not close:
        return None
    names = "; ".join(row_name(row) for row in close[:3]) + (" and others" if len(close) > 3 else "")
    return (
        f"{best.task}: {len(close)} of {counted(len(others), 'other row')} within two standard errors over the seeds "
        f"of the best plug-in, so not behind it for certain: {names}."
    )


def _promise_limit(rows: Sequence[ComparedRow]) -> str | None:
    whole = [row for row in rows if row.quality is not None]
    titles = {model: MODEL_TITLES[model] for model in ("zero_shot", "emulator_tuned")}
    titles |= {model: attack_title(model) for model in attacks_measured(rows)}
    below = [f"{count} not above {title}" for model, title in titles.items() if (count := _not_above(whole, model))]
    if not below:
        return None
    return (
        f"{rows[0].task}: of {counted(len(whole), 'plug-in')} {' and '.join(below)}: offsite-tuning is no gain there."
    )


def _not_above(rows: Sequence[ComparedRow], model: str) -> int:
    pairs = [(row, row.headline("plug_in"), row.headline(model)) for row in rows]
    return sum(
        (plug_in.mean <= other.mean if MEASURES[row.measure].is_share else plug_in.mean >= other.mean)
        for row, plug_in, other in pairs
        if plug_in is not None and other is not None
    )


def _privacy_limit(rows: Sequence[ComparedRow]) -> str:
    shares = [row.verbatim_share for row in rows]
    least, most = percent(min(shares)), percent(max(shares))
    shown = least if least == most else f"{least} to {most}"
    return (
        f"{shown} of the full model leave bit for bit. Delta is a gap in utility on a task, no proof of secrecy: a "
        "data owner who tunes the whole emulator, or has other text, may get more out of it."
    )


def _standard_error(row: ComparedRow) -> float | None:
    plug_in = row.headline("plug_in")
    if plug_in is None or plug_in.deviation is None:
        return None
    return plug_in.deviation / math.sqrt(plug_in.count)


def _is_within_two_errors(row: ComparedRow, best: ComparedRow) -> bool:
    errors = [_standard_error(row) or 0.0, _standard_error(best) or 0.0]
    return abs((best.quality or 0.0) - (row.quality or 0.0)) <= 2 * math.hypot(*errors)
