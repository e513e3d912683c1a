"""What a comparison found, as values: its points summarised over seeds, one row for each builder and setting."""

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from scaleot_core.report.document import MODEL_TITLES
from scaleot_core.report.files import json_text_by_lines
from scaleot_core.report.phrases import HEADLINE_SHARES, MEASURES, counted

TASK, BUILDER = "task", "builder"
"""The two labels that every point has; each other one is the variant, or what varies."""

NOT_FINITE = "a figure of the tuned models is not finite"

TUNED = ("emulator_tuned", "plug_in")
"""The models that an adapter is in, so that they have no figure where it came to nothing."""

_STRONG_EMULATOR, _HEALED_BY = "strong_emulator", "healed_by_"

FLOOR_TITLES: Mapping[str, str] = {
    "zero_shot": MODEL_TITLES["zero_shot"],
    "full_fine_tuning": MODEL_TITLES["full_fine_tuning"],
    "majority": "most frequent answer",
    "random_initialisation": "random weights",
}
"""What a task gives without offsite-tuning, by its key in ``ComparedRow.results``."""

Point = Mapping[str, Any]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Spread:
    """A figure over seeds."""

    mean: float
    deviation: float | None
    """The sample standard deviation (n - 1); none for one seed."""
    count: int

    def to_json(self) -> dict[str, float | int | None]:
        """Returns plain JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class ComparedRow:
    """All seeds of one task, builder and setting."""

    labels: Mapping[str, Any]
    measure: str
    """The headline figure: ``f1`` where the task has one, else ``accuracy``, else ``perplexity``."""
    seeds: tuple[int, ...]
    failures: tuple[str, ...]
    """Why the adapter of a seed came to nothing, one for each that did; it is in no figure of the tuned models."""
    examples: int
    """Held-out examples behind each figure."""
    results: Mapping[str, Mapping[str, Spread]]
    """By model, attack and floor, and by the name in ``Metrics``; what was not measured is left out.

    An attack is what a data owner can make of the emulator: ``strong_emulator``, or ``healed_by_N`` after N steps of
    public text, then tuned likewise where the strong emulator was measured.
    """
    delta: Spread | None
    """The headline figure of plug-in minus emulator tuned, seed by seed; in perplexity less than 0 is a gap."""
    share_of_full_fine_tuning: Spread | None
    """Plug-in over full fine-tuning, seed by seed; perplexities the other way round, so that more is better."""
    verbatim_share: float
    size_share: float
    stage_one_seconds: float | None
    """Importance and build when they were computed; none where a shipped result does not say."""
    importance: tuple[float, ...] | None
    budgets: tuple[Mapping[str, Any], ...]
    """Of privacy, each once: mechanism, epsilon, delta, unit, neighbouring, sampling; empty without a mechanism."""

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self.labels[TASK])

    @property
    def builder(self) -> str:
        """The emulator builder."""
        return str(self.labels[BUILDER])

    @property
    def settings(self) -> dict[str, Any]:
        """The variant and what varies, by key."""
        return {key: value for key, value in self.labels.items() if key not in (TASK, BUILDER)}

    def headline(self, model: str) -> Spread | None:
        """Returns the headline figure of a model, attack or floor, by its key, if it was measured."""
        return self.results.get(model, {}).get(self.measure)

    @property
    def quality(self) -> float | None:
        """The plug-in's mean headline figure, with the sign that makes more better; none if a seed failed."""
        plug_in = self.headline("plug_in")
        if plug_in is None or self.failures:
            return None
        return plug_in.mean if MEASURES[self.measure].is_share else -plug_in.mean

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "labels": dict(self.labels),
            "measure": self.measure,
            "seeds": list(self.seeds),
            "failed": len(self.failures),
            "examples": self.examples,
            "results": {
                model: {name: spread.to_json() for name, spread in figures.items()}
                for model, figures in self.results.items()
            },
            "delta": self.delta.to_json() if self.delta else None,
            "share_of_full_fine_tuning": share.to_json() if (share := self.share_of_full_fine_tuning) else None,
            "verbatim_share": self.verbatim_share,
            "size_share": self.size_share,
            "stage_one_seconds": self.stage_one_seconds,
            **({"budgets": [dict(budget) for budget in self.budgets]} if self.budgets else {}),
        }


@dataclass(frozen=True)
class Floor:
    """What a task gives without offsite-tuning: the same for many rows."""

    model: str
    """A key of ``FLOOR_TITLES``."""
    labels: Mapping[str, Any]
    """What tells it from others of its task and model; empty where there is one."""
    spread: Spread


@dataclass(frozen=True)
class Comparison:
    """Every row, and what it was made from."""

    rows: tuple[ComparedRow, ...]
    means: tuple[ComparedRow, ...]
    """Of every builder and setting over all tasks, seed by seed; empty for one task, and where one has no accuracy.

    Its headline is F1 where all tasks have one, else accuracy, which of generated answers is exact match.
    """
    points: tuple[Point, ...]
    config: Mapping[str, Any]
    """The resolved run file as plain JSON values."""
    versions: Mapping[str, str]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks in the order of the points."""
        return tuple(dict.fromkeys(row.task for row in self.rows))

    @property
    def blocks(self) -> dict[str, tuple[ComparedRow, ...]]:
        """The rows by task, and last those of the mean over tasks where there are several."""
        blocks = {task: self.of_task(task) for task in self.tasks}
        return {**blocks, f"mean over {len(blocks)} tasks": self.means} if self.means else blocks

    def of_task(self, task: str) -> tuple[ComparedRow, ...]:
        """Returns the rows of one task."""
        return tuple(row for row in self.rows if row.task == task)

    def to_json(self) -> dict[str, Any]:
        """Returns the document; its keys are stable."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "means": [row.to_json() for row in self.means],
            "points": [dict(point) for point in self.points],
            "config": dict(self.config),
            "versions": dict(self.versions),
        }

    def to_text(self) -> str:
        """Returns the document as JSON text, a row or point on a line; a number that is not finite becomes null."""
        return json_text_by_lines(self.to_json())


def summarize(points: Sequence[Point], config: Mapping[str, Any], versions: Mapping[str, str]) -> Comparison:
    """Returns the comparison of the points, with one row for all that differ in the seed alone.

    A point is what a bench returns for one run: ``labels``, ``seed``, ``results`` (figures by model), ``emulator``,
    ``failed``, ``budgets`` under a mechanism of privacy, and ``attacks``; older points lack the last two. Rows stand in
    the order in which the points first name them.
    """
    return Comparison(_rows(points), _rows(_means_over_tasks(points)), tuple(points), config, versions)


def spread_over(values: Iterable[float | None]) -> Spread | None:
    """Returns mean and sample standard deviation of the values that are there; none of none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(statistics.mean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


def grouped(items: Sequence[_T], name: Callable[[_T], Any]) -> list[list[_T]]:
    """Returns the items of each name, which is plain JSON, in the order in which the names first come."""
    groups: dict[str, list[_T]] = {}
    for item in items:
        groups.setdefault(json.dumps(name(item), sort_keys=True), []).append(item)
    return list(groups.values())


def floors(rows: Sequence[ComparedRow]) -> tuple[Floor, ...]:
    """Returns zero-shot and full fine-tuning of one task's rows, each figure once.

    Several stand side by side only where what varies changes them, as the kind of adapter does.
    """
    found = []
    for model in FLOOR_TITLES:
        groups: dict[Spread, list[ComparedRow]] = {}
        for row in rows:
            if (spread := row.headline(model)) is not None:
                groups.setdefault(spread, []).append(row)
        found += [Floor(model, distinguishing_labels(group, rows), spread) for spread, group in groups.items()]
    return tuple(found)


def distinguishing_labels(group: Sequence[ComparedRow], rows: Sequence[ComparedRow]) -> dict[str, Any]:
    """Returns the labels that all rows of a group share and not all ``rows`` do; the task is none of them."""
    shared_by_all = common_labels(rows)
    return {key: value for key, value in common_labels(group).items() if key != TASK and key not in shared_by_all}


def common_labels(rows: Sequence[ComparedRow]) -> dict[str, Any]:
    """Returns the labels that all rows share."""
    return {key: value for key, value in rows[0].labels.items() if all(row.labels.get(key) == value for row in rows)}


def attacks_measured(rows: Sequence[ComparedRow]) -> list[str]:
    """Returns the keys of the attacks that any of the rows has a figure of, as ``ComparedRow.results`` names them."""
    return _attacks(row.results for row in rows)


def attack_title(model: str) -> str:
    """Returns the name of an attack, by its key in ``ComparedRow.results``."""
    if model == _STRONG_EMULATOR:
        return "strong emulator"
    return f"healed by {counted(int(model.removeprefix(_HEALED_BY)), 'step')}"


def best_row(rows: Sequence[ComparedRow]) -> ComparedRow | None:
    """Returns the row of one task with the best plug-in, of those that no seed failed; the first of equals."""
    return max((row for row in rows if row.quality is not None), key=lambda row: row.quality or 0.0, default=None)


def front_rows(rows: Sequence[ComparedRow]) -> tuple[ComparedRow, ...]:
    """Returns the rows of one task on the Pareto front of plug-in against verbatim share, the least share first."""
    whole = [(row, row.quality) for row in rows if row.quality is not None]
    front = pareto_front([(row.verbatim_share, quality) for row, quality in whole])
    return tuple(whole[position][0] for position in front)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns the positions of the points (cost, quality) that no other beats, the least cost first.

    One beats another if it costs no more and is no worse, and one of the two is better; equals do not beat each other.
    """
    front = [
        position
        for position, (cost, quality) in enumerate(points)
        if not any(
            other_cost <= cost and other >= quality and (other_cost < cost or other > quality)
            for other_cost, other in points
        )
    ]
    return sorted(front, key=lambda position: points[position])


def _means_over_tasks(points: Sequence[Point]) -> list[Point]:
    """Returns a point for each builder, setting and seed, with the mean of each figure over all tasks."""
    tasks = {point["labels"][TASK] for point in points}
    if len(tasks) < 2 or not all("accuracy" in point["results"]["zero_shot"] for point in points):
        return []
    return [_mean_point(run) for run in grouped(points, lambda point: ({**point["labels"], TASK: None}, point["seed"]))]


def _mean_point(points: Sequence[Point]) -> Point:
    first, results = points[0], [_all_figures(point) for point in points]
    failed = [f"{point['labels'][TASK]}: {point['failed']}" for point in points if point["failed"] is not None]
    return {
        **first,
        "labels": {**first["labels"], TASK: None},
        "results": {
            model: _mean_figures([one[model] for one in results])
            for model in results[0]
            if all(model in one for one in results)
        },
        "attacks": None,
        "failed": "; ".join(failed) or None,
        "budgets": _budgets(points),
    }


def _mean_figures(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = [name for name in figures[0] if all(one.get(name) is not None for one in figures)]
    means = {name: statistics.mean(one[name] for one in figures) for name in names}
    return {**means, "examples": sum(one["examples"] for one in figures)}


def _rows(points: Sequence[Point]) -> tuple[ComparedRow, ...]:
    return tuple(_row(seeds) for seeds in grouped(points, lambda point: point["labels"]))


def _row(points: Sequence[Point]) -> ComparedRow:
    first = points[0]
    measure = next((name for name in HEADLINE_SHARES if name in first["results"]["zero_shot"]), "perplexity")
    reasons = [_failure(point, measure) for point in points]
    tuned = [point for point, reason in zip(points, reasons, strict=True) if reason is None]
    models = [*MODEL_TITLES, *_attacks(map(_all_figures, points)), "majority", "random_initialisation"]
    results = {model: _figures(tuned if model in TUNED else points, model) for model in models}
    emulators = [point["emulator"] for point in points]
    stage_one = [_stage_one_seconds(emulator) for emulator in emulators]
    importance = first["emulator"]["importance"]
    return ComparedRow(
        labels=first["labels"],
        measure=measure,
        seeds=tuple(point["seed"] for point in points),
        failures=tuple(reason for reason in reasons if reason is not None),
        examples=first["results"]["zero_shot"]["examples"],
        results={model: figures for model, figures in results.items() if figures},
        delta=spread_over(_delta(point, measure) for point in tuned),
        share_of_full_fine_tuning=spread_over(_share_of_full_fine_tuning(point, measure) for point in tuned),
        verbatim_share=statistics.mean(emulator["verbatim_share"] for emulator in emulators),
        size_share=statistics.mean(emulator["size_share"] for emulator in emulators),
        stage_one_seconds=None if None in stage_one else statistics.mean(s for s in stage_one if s is not None),
        importance=None if importance is None else tuple(importance),
        budgets=tuple(_budgets(points)),
    )


def _budgets(points: Sequence[Point]) -> list[Mapping[str, Any]]:
    every = [budget for point in points for budget in point.get("budgets", ())]
    return [same[0] for same in grouped(every, lambda budget: budget)]


def _figures(points: Sequence[Point], model: str) -> dict[str, Spread]:
    measured = [figures[model] for figures in map(_all_figures, points) if model in figures]
    names = dict.fromkeys(name for figures in measured for name in figures if name != "examples")
    spreads = {name: spread_over(figures.get(name) for figures in measured) for name in names}
    return {name: spread for name, spread in spreads.items() if spread is not None}


def _all_figures(point: Point) -> dict[str, Mapping[str, Any]]:
    """Returns a point's figures by model, attack and floor, but for healing by no steps, which undoes nothing."""
    figures, attacks = dict(point["results"]), point.get("attacks")
    if attacks is None:
        return figures
    figures["random_initialisation"] = attacks["floors"]["random_initialisation"]
    if majority := attacks["floors"]["majority"]:
        figures["majority"] = {name: majority[name] for name in ("accuracy", "examples")}
    if strong := attacks[_STRONG_EMULATOR]:
        figures[_STRONG_EMULATOR] = strong["metrics"]
    for healed in attacks["healing"] or ():
        if healed["steps"]:
            tuned = healed["tuned"]
            figures[f"{_HEALED_BY}{healed['steps']}"] = tuned["metrics"] if tuned else healed["zero_shot"]
    return figures


def _attacks(named: Iterable[Iterable[str]]) -> list[str]:
    keys = dict.fromkeys(key for one in named for key in one)
    return [key for key in keys if key == _STRONG_EMULATOR or key.startswith(_HEALED_BY)]


def _failure(point: Point, measure: str) -> str | None:
    if point["failed"] is not None:
        return str(point["failed"])
    missing = any(_headline(point, model, measure) is None for model in TUNED)
    return NOT_FINITE if missing else None


def _headline(point: Point, model: str, measure: str) -> float | None:
    value = point["results"].get(model, {}).get(measure)
    return None if value is None else float(value)


def _delta(point: Point, measure: str) -> float | None:
    emulator_tuned, plug_in = [_headline(point, model, measure) for model in TUNED]
    return None if plug_in is None or emulator_tuned is None else plug_in - emulator_tuned


def _share_of_full_fine_tuning(point: Point, measure: str) -> float | None:
    plug_in, full = [_headline(point, model, measure) for model in ("plug_in", "full_fine_tuning")]
    if plug_in is None or full is None:
        return None
    above, below = (plug_in, full) if MEASURES[measure].is_share else (full, plug_in)
    return above / below if below else None


def _stage_one_seconds(emulator: Mapping[str, Any]) -> float | None:
    importance = emulator["importance_seconds"]
    return None if importance is None else float(importance + emulator["build_seconds"])
