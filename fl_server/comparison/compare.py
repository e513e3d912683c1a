"""A whole comparison, from the run file to its results: what ``scaleot compare`` runs."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fl_server.comparison.bench import Bench
from fl_server.comparison.points import Point, check_points, expand
from fl_server.comparison.store import ResultStore
from fl_server.compress import asset_or_path, load_full_model
from fl_server.data import read_data
from fl_server.privacy import check_privacy
from fl_server.versions import versions
from scaleot_core.models.loading import read_layout
from scaleot_core.progress import Reporter
from scaleot_core.run_file import RunFile

DEFAULT_FOLDER = Path("scaleot-runs")


def default_directory(run: RunFile) -> Path:
    """Returns where a comparison goes for which no place was given: the same run file finds it again."""
    digest = hashlib.sha256(json.dumps(run.model_dump(), sort_keys=True).encode()).hexdigest()
    return DEFAULT_FOLDER / f"compare-{digest[:12]}"


def compare(run: RunFile, directory: Path, reporter: Reporter) -> list[dict[str, Any]]:
    """Runs every point of the run file's ``[compare]`` and returns their results those of one emulator together.

    What ``directory`` holds of an earlier, killed run is not computed again. Every point and every file of records is
    checked before the first is run.

    Raises:
        RunFileError: a point is impossible.
        InputError: the model, text or data cannot be used.
        OutputError: the directory cannot be written, or was begun by other versions.
    """
    points = expand(run)
    check_points(points, read_layout(asset_or_path(run.model.source, reporter)).num_layers)
    for data_run in _one_for_each_data(points):
        check_privacy(data_run, read_data(data_run, reporter).partitions, reporter)
    store = ResultStore(directory, versions())
    bench = Bench(load_full_model(run.model, reporter), store, reporter)
    results = []
    with reporter.stage("points", steps=len(points)) as stage:
        for position, point in enumerate(points, start=1):
            reporter.note(f"point {position} of {len(points)}: {point.title}, seed {point.seed}")
            results.append(bench.run(point))
            stage.advance()
    return results


def _one_for_each_data(points: Sequence[Point]) -> list[RunFile]:
    """Returns one run for each way to divide data among clients, and each privacy that is asked for on it."""
    by_data = {}
    for run in (point.run for point in points):
        sections = (run.data, run.federation, run.privacy)
        seed = run.seed if run.federation.partition == "dirichlet" and run.privacy.mechanism != "none" else 0
        by_data[tuple(section.model_dump_json() for section in sections), seed] = run
    return list(by_data.values())
