"""A whole comparison, from the run file to its results: what ``scaleot compare`` runs."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fl_server.comparison.bench import Bench
from fl_server.comparison.points import Point, expand
from fl_server.comparison.store import ResultStore, check_directory
from fl_server.compress import asset_or_path, load_full_model
from fl_server.data import read_data
from fl_server.feasibility import check_layers, check_public_text
from fl_server.machine import machine_name
from fl_server.memory import return_freed_memory
from fl_server.privacy import check_privacy, planned_lines
from fl_server.versions import versions
from scaleot_core.models.loading import read_layout
from scaleot_core.progress import Reporter, advance_found
from scaleot_core.run_file import RunFile

DEFAULT_FOLDER = Path("scaleot-runs")


def default_directory(run: RunFile) -> Path:
    """Returns where a comparison goes for which no place was given: the same run file finds it again."""
    digest = hashlib.sha256(json.dumps(run.model_dump(), sort_keys=True).encode()).hexdigest()
    return DEFAULT_FOLDER / f"compare-{digest[:12]}"


def compare(run: RunFile, directory: Path, reporter: Reporter) -> list[dict[str, Any]]:
    """Runs every point of the run file's ``[compare]`` and returns their results, those of one emulator together.

    What ``directory`` holds of an earlier, killed run is not computed again. Every point, every file of records and the
    public text are checked before the first point is run or anything is written.

    Raises:
        RunFileError: a point is impossible.
        InputError: the model, text or data cannot be used.
        OutputError: the directory cannot be written, or was begun by other versions.
    """
    points = expand(run)
    runs = [point.run for point in points]
    check_layers(runs, read_layout(asset_or_path(run.model.source, reporter)).num_layers)
    for point in _one_for_each_data(points):
        check_privacy(point.run, read_data(point.run, reporter).partitions, reporter)
    check_directory(directory, versions())
    full = load_full_model(run.model, reporter)
    check_public_text(runs, full, reporter)
    store = ResultStore(directory, versions(), machine_name(full.model.device))
    bench = Bench(full, store, reporter)
    results = []
    with reporter.stage("points", steps=len(points)) as stage:
        for position, point in enumerate(points, start=1):
            reporter.note(f"point {position} of {len(points)}: {point.title}, seed {point.seed}")
            num_computed = store.num_computed
            results.append(bench.run(point))
            return_freed_memory()
            if store.num_computed > num_computed:
                stage.advance()
            else:
                advance_found(stage)
    return results


def planned_costs(run: RunFile, reporter: Reporter) -> list[str]:
    """Says, for people, what privacy costs each data owner at every private point; no model is needed.

    Raises:
        RunFileError: a point is impossible.
        InputError: the data cannot be used, or no noise keeps a budget.
        BudgetExhaustedError: a point's rounds pass its budget.
    """
    private = [point for point in expand(run) if point.run.privacy.mechanism != "none"]
    return [
        f"{point.title}: {line}"
        for point in _one_for_each_data(private)
        for line in planned_lines(point.run, read_data(point.run, reporter).partitions)
    ]


def _one_for_each_data(points: Sequence[Point]) -> list[Point]:
    """Returns one point for each way to divide data among clients, and each privacy that is asked for on it."""
    by_data: dict[tuple[tuple[str, ...], int, int], Point] = {}
    for point in points:
        run = point.run
        sections = (run.data, run.federation, run.privacy)
        seed = run.seed if run.federation.partition == "dirichlet" and run.privacy.mechanism != "none" else 0
        asked = tuple(section.model_dump_json() for section in sections)
        by_data.setdefault((asked, run.evaluation.examples, seed), point)
    return list(by_data.values())
