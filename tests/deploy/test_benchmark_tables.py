"""The checked-in tables of ``deploy/benchmarks``: each is of the results beside it, and the page is of the tables."""

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scaleot_core.config import read_run_file_elsewhere
from scaleot_core.report.comparison import summarize
from scaleot_core.report.comparison_markdown import comparison_markdown
from scaleot_core.report.comparison_plots import comparison_plots, plot_files

DIRECTORY = Path(__file__).parents[2] / "deploy" / "benchmarks"
RESULTS = sorted(DIRECTORY.glob("*.json"))  # others lie in folders
PAGE = (DIRECTORY / "README.md").read_text(encoding="utf-8")
SECTIONS = [section for section in PAGE.split("\n## ") if re.search(r"\]\([a-z0-9-]+\.md\)", section)]

each_result = pytest.mark.parametrize("results", RESULTS, ids=[path.stem for path in RESULTS])
each_section = pytest.mark.parametrize("section", SECTIONS, ids=[section.partition("\n")[0] for section in SECTIONS])


@each_result
def test_a_table_is_of_the_results_beside_it(results: Path) -> None:
    found = json.loads(results.read_text(encoding="utf-8"))
    comparison = summarize(found["points"], found["config"], found["versions"])
    assert results.with_suffix(".md").read_text(encoding="utf-8") == comparison_markdown(comparison)
    assert results.read_text(encoding="utf-8") == comparison.to_text()
    assert '"/' not in comparison.to_text(), "a path of the machine that made it"


@each_result
def test_results_are_of_the_run_file_beside_them(results: Path) -> None:
    """In every setting that there was when they were made."""
    run_file = results.with_suffix(".toml")
    asked = json.loads(read_run_file_elsewhere(run_file).model_dump_json().replace(f"{run_file.parent.resolve()}/", ""))
    document = json.loads(results.read_text(encoding="utf-8"))
    found = document["config"]
    for values in (asked, found):
        if values.get("privacy", {}).get("mechanism") == "none":
            values["privacy"] = {"mechanism": "none"}  # nothing else of the section has an effect
        if not asked["compare"]["attacks"]:
            values["model_privacy"] = {}  # has none, either
    assert asked["compare"]["attacks"] or not any(map(is_attacked, document["points"]))
    assert list(differences(asked, found)) == []


def is_attacked(point: dict[str, Any]) -> bool:
    attacks = point.get("attacks") or {}
    return bool(attacks.get("strong_emulator") or attacks.get("healing"))


def differences(asked: Any, found: Any, path: str = "") -> Iterator[str]:
    if not isinstance(found, dict) or not isinstance(asked, dict):
        yield from () if asked == found else (f"{path}: {asked!r} asked, {found!r} found",)
        return
    for name in {*found, *(asked if path.startswith("compare.") else ())}:
        yield from differences(asked.get(name), found.get(name), f"{path}.{name}".removeprefix("."))


@dataclass(frozen=True)
class Figure:
    value: float
    signed: bool
    """As a delta is, and nothing else."""
    deviation: float | None
    column: str

    def is_told_by(self, told: "Figure") -> bool:
        """To the page's one decimal; a page may leave the deviation out, and name a column of its own."""
        return (
            told.signed == self.signed
            and abs(told.value - self.value) < 0.0501
            and (told.deviation is None or abs(told.deviation - (self.deviation or 0)) < 0.0501)
            and (told.column == "" or self.column in ("", told.column))
        )


def figures(text: str, column: str = "") -> list[Figure]:
    found = re.findall(r"(?<![\d.,])([+-]?)(\d[\d,]*\.\d+)(?: ± (\d+\.\d+))?", text)
    return [
        Figure(float(sign + digits.replace(",", "")), bool(sign), float(deviation) if deviation else None, column)
        for sign, digits, deviation in found
    ]


def table_rows(text: str) -> Iterator[list[tuple[str, str]]]:
    """Yields the rows of every table, each cell with its column's title, which may occur twice."""
    for is_table, lines in itertools.groupby(text.splitlines(), lambda line: line.startswith("|")):
        if is_table:
            head, _, *body = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
            yield from (list(zip(head, cells, strict=True)) for cells in body)


SETTINGS_IN_COLUMNS = (
    "What the adapter layers carry",
    "How much rank, of what, and nearest in what",
    "Six builders in federations, with two local steps a round",
)
"""Sections whose rows are of several settings of one builder; elsewhere a row is of one setting, of all tasks."""

FROM_THE_DATA_ALONE = "always the same position"
"""A row that no model is behind, of tables that are older than the floors in the results."""


def measured(section: str) -> dict[tuple[str, ...], list[Figure]]:
    """Returns what one row of the section's tables may say: the figures of one builder and setting, or of none."""
    rows: dict[tuple[str, ...], list[Figure]] = defaultdict(list)
    floors: list[Figure] = []
    for name in re.findall(r"\]\(([a-z0-9-]+)\.md\)", section):
        text = (DIRECTORY / f"{name}.md").read_text(encoding="utf-8")
        floors += figures("\n".join(line for line in text.splitlines() if not line.startswith("|")))
        found = json.loads((DIRECTORY / f"{name}.json").read_text(encoding="utf-8"))
        shares = [row["share_of_full_fine_tuning"] for row in found["rows"] + found["means"]]
        for cells, share in zip(table_rows(text), shares, strict=True):
            labels = itertools.takewhile(lambda named: named[0] != "emulator zero-shot", cells)
            row = rows[tuple(cell for _, cell in labels)]
            row += [figure for title, cell in cells for figure in figures(cell, title)]
            row += [Figure(100 * share["mean"], False, None, "of full fine-tuning")] if share else []
    if section.startswith(SETTINGS_IN_COLUMNS):
        of_builders = {
            (name,): [one for labels, row in rows.items() if labels[0] == name for one in row] for name, *_ in rows
        }
        return {**of_builders, (): floors}
    return {**rows, (): floors} if len(rows) > 1 else {labels: [*row, *floors] for labels, row in rows.items()}


@each_section
def test_every_row_of_the_page_is_of_one_row_of_its_results(section: str) -> None:
    """Whatever has a decimal, with its sign, deviation and column, of the builder or setting that the row names."""
    known, columns = measured(section), ("emulator zero-shot", "emulator tuned", "plug-in")
    for (_, name), *cells in table_rows(section):
        told = [
            figure
            for title, cell in cells
            for figure in figures(cell, next((name for name in columns if title.endswith(name)), ""))
        ]
        named = {word for word in re.findall(r"`([^`]+)`", name) if any(word in labels for labels in known)}
        rows = [row for labels, row in known.items() if named <= set(labels)]
        assert name == FROM_THE_DATA_ALONE or any(all_stand_in(told, row) for row in rows), (name, cells)


def all_stand_in(told: Iterable[Figure], one: Iterable[Figure]) -> bool:
    return all(any(figure.is_told_by(claim) for figure in one) for claim in told)


def test_the_rank_correlations_in_the_page_are_those_of_the_report_beside_it() -> None:
    [section] = [part for part in PAGE.split("\n## ") if "](layers/" in part]
    layers = json.loads((DIRECTORY / "layers" / "smollm2-135m.json").read_text(encoding="utf-8"))
    found, measures = layers["rank_correlation"], ["importance", "leave_one_out", "angular_change", "cka", "random"]
    rows = [line.split("|")[2:6] for line in section.splitlines() if line.startswith("|")][2:]
    told = {
        (one, other): cell.strip()
        for one, row in zip(measures, rows, strict=False)
        for other, cell in zip(measures[1:], row, strict=True)
    }
    pairs = list(itertools.combinations(measures, 2))
    assert {pair: told[pair] for pair in pairs} == {(one, other): f"{found[one][other]:.2f}" for one, other in pairs}


PLOTS = sorted(DIRECTORY.joinpath("plots").glob("*.svg"))


def test_the_page_shows_every_plot_beside_it() -> None:
    assert sorted(re.findall(r"\]\(plots/([^)]+)\)", PAGE)) == [path.name for path in PLOTS]


@pytest.mark.parametrize("plot", PLOTS, ids=[path.stem for path in PLOTS])
def test_a_plot_is_drawn_from_the_results_beside_it(plot: Path) -> None:
    """By its words and by where its dots are: versions of matplotlib may draw the rest another way."""
    name, _, file = plot.name.partition("-")
    found = json.loads((DIRECTORY / f"{name}.json").read_text(encoding="utf-8"))
    comparison = summarize(found["points"], found["config"], found["versions"])
    drawn, shown = plot_files(comparison, comparison_plots(comparison))[file], plot.read_text(encoding="utf-8")
    words = re.compile(r"<(?:text|desc)[^>]*>([^<]*)</")
    assert words.findall(shown) == words.findall(drawn)
    dots = re.compile(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"')
    places = [[tuple(map(float, place)) for place in dots.findall(text)] for text in (shown, drawn)]
    assert len(places[0]) > 10
    assert places[0] == [pytest.approx(place, abs=0.5) for place in places[1]]


def test_the_gains_of_compiled_layers_in_the_page_are_those_of_the_benchmark_beside_it() -> None:
    [section] = [part for part in PAGE.split("\n## ") if part.startswith("What compiled layers gain on a CPU")]
    found = json.loads((DIRECTORY / "steps" / "smollm2-135m-cpu.json").read_text(encoding="utf-8"))
    shown = {CASES[name]: tuple(cell for _, cell in cells) for (_, name), *cells in table_rows(section)}
    assert {name for case in shown for name in (case, f"{case}, compiled")} == found.keys()
    for case, (plain, compiled, gain, seconds) in shown.items():
        speeds = [found[name]["tokens_per_second"] for name in (case, f"{case}, compiled")]
        assert [plain, compiled] == [f"{float(format(speed, '.2e')):,.0f}" for speed in speeds]
        assert gain == f"{100 * (speeds[1] / speeds[0] - 1):.0f} %"
        assert seconds.removesuffix(" ¹") == f"{found[f'{case}, compiled']['compile_seconds']:.0f}"


PEAK_FLOPS_PER_SECOND = 790e12
"""What the page takes for the GPU's peak, in place of each case's own measurement of it."""

CASES = {
    "stage 1: harmonizers": "stage 1",
    "client's step in the emulator": "client step, emulator",
    "the same, `dp-sgd`": "client step, dp-sgd",
    "the same, `dpzero`, four forward passes": "client step, dpzero",
    "the same, `lmo-dp`, four forward passes": "client step, lmo-dp",
    "the same, `update-gaussian`": "client step, update-gaussian",
    "inference in the emulator": "inference, emulator",
    "LoRA step in all layers of the full model": "client step, full model",
    "plug-in evaluation": "plug-in evaluation",
}


@pytest.mark.parametrize(("model", "first"), [("smollm2-135m", 1), ("gemma3-270m", 4), ("llama-1b", 7)])
def test_the_steps_in_the_page_are_those_of_the_benchmark_beside_it(model: str, first: int) -> None:
    """Tokens per second to three digits, the share of the peak to a percent, memory to a MiB."""
    [section] = [part for part in PAGE.split("\n## ") if part.startswith("What a step costs on a GPU")]
    found = json.loads((DIRECTORY / "steps" / f"{model}.json").read_text(encoding="utf-8"))
    shown = {}
    for (_, name), *cells in table_rows(section):
        tokens, share, memory = (cell.removesuffix(" ¹") for _, cell in cells[first - 1 : first + 2])
        if tokens:
            shown[CASES[name]] = (tokens, share, memory)
    measured = {
        name: (
            f"{float(format(case['tokens_per_second'], '.2e')):,.0f}",
            f"{100 * case['flops_per_step'] / case['seconds_per_step'] / PEAK_FLOPS_PER_SECOND:.0f} %",
            f"{case['peak_memory_mebibytes']:,.0f}",
        )
        for name, case in found.items()
    }
    assert shown == measured
