"""The points of a comparison: every combination that the run file's ``[compare]`` asks for, checked before any work."""

import itertools
import json
from dataclasses import dataclass
from typing import Any

from fl_server.model_privacy import without_attacks
from scaleot_core.config import with_settings
from scaleot_core.errors import RunFileError
from scaleot_core.run_file import CompareSection, RunFile

ONE_MODEL = "model: a comparison is of one model; give each model a run file of its own"
NO_CANARY = "canary.text: a comparison tries its adapters on no canary; leave it out"
NO_ATTACKS = "{key}: a comparison attacks its emulators only with compare.attacks = true; false says that it need not"
DATA_ALONE = "data"
"""The name of the one task where ``[compare.tasks]`` is empty."""


@dataclass(frozen=True)
class Point:
    """One run of the comparison."""

    labels: tuple[tuple[str, Any], ...]
    """What tells it from the others but for the seed: task, builder, variant, and what varies."""
    run: RunFile
    """The whole run, its ``[compare]`` empty."""

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.run.seed

    @property
    def title(self) -> str:
        """One line for people."""
        return ", ".join(str(value) if key in ("task", "builder") else f"{key} {value}" for key, value in self.labels)


def expand(run: RunFile) -> tuple[Point, ...]:
    """Returns every point, those with the same emulator side by side.

    Raises:
        RunFileError: with every faulty combination at once.
    """
    compare = run.compare
    points: list[Point] = []
    faults = [NO_CANARY] if run.canary.text else []
    faults += [NO_ATTACKS.format(key=key) for key in _attacks_in_vain(run)]
    for labels, settings in _combinations(compare):
        for seed in compare.seeds:
            try:
                point_run = with_settings(_without_comparison(run), {**settings, "seed": seed})
            except RunFileError as error:
                faults += [fault for fault in error.faults if fault not in faults]
                continue
            points.append(Point(labels, point_run))
            if point_run.model != run.model and (fault := ONE_MODEL) not in faults:
                faults.append(fault)
    if faults:
        raise RunFileError("[compare]", tuple(faults))
    order: dict[str, int] = {}
    for point in points:
        order.setdefault(emulator_key(point.run), len(order))
    return tuple(sorted(points, key=lambda point: order[emulator_key(point.run)]))


def emulator_key(run: RunFile) -> str:
    """Returns a text that two runs share exactly if they build the same emulator of the same model."""
    return json.dumps([run.importance.model_dump(), run.emulator.model_dump()], sort_keys=True)


def _combinations(compare: CompareSection) -> list[tuple[tuple[tuple[str, Any], ...], dict[str, Any]]]:
    tasks = {name: task.model_dump() for name, task in compare.tasks.items()} or {DATA_ALONE: {}}
    variants = compare.variants or {"": {}}
    combinations = {}
    for variant, builder, values, task in itertools.product(
        variants, compare.builders, itertools.product(*compare.vary.values()), tasks
    ):
        varied = dict(zip(compare.vary, values, strict=True))
        settings = {f"data.{key}": value for key, value in tasks[task].items()}
        settings |= {"emulator.builder": builder, **variants[variant], **varied}
        labels = [("task", task), ("builder", settings["emulator.builder"])]
        labels += [("variant", variant)] if compare.variants else []
        named = (*labels, *varied.items())
        combinations[json.dumps(named)] = (named, settings)  # once, where a variant names the builder itself
    return list(combinations.values())


def _attacks_in_vain(run: RunFile) -> list[str]:
    """Returns the keys of attacks that the run file names and ``compare.attacks`` leaves out, said so or not."""
    compare, section = run.compare, run.model_privacy
    if compare.attacks:
        return []
    varied = {key: None for settings in (compare.vary, *compare.variants.values()) for key in settings}
    named = [key for key in varied if key.startswith("model_privacy.")]
    if "attacks" not in compare.model_fields_set:
        asked = [name for name in ("strong_emulator_steps", "healing_steps") if getattr(section, name)]
        named += [f"model_privacy.{name}" for name in asked if name in section.model_fields_set]
    return named


def _without_comparison(run: RunFile) -> RunFile:
    alone = run.model_copy(update={"compare": CompareSection()})
    return alone if run.compare.attacks else without_attacks(alone)
