import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scaleot_core.config import read_run_file_elsewhere
from scaleot_core.report.comparison import summarize
from scaleot_core.report.comparison_markdown import comparison_markdown
from tests.support.example_comparison import ALPHA, CONFIG, VERSIONS, example_point, grid_points, text_figures


def test_a_task_has_its_floors_and_a_row_for_each_builder_and_setting_with_the_best_in_bold() -> None:
    points = grid_points("sst2", ("scaleot", "uniform"), {ALPHA: [0.0, 0.5]})
    lines = comparison_markdown(summarize(points, CONFIG, VERSIONS)).splitlines()
    assert "zero-shot: 56.7  " in lines and "full fine-tuning: 88.7 ± 0.0" in lines
    assert "| scaleot | 0.5 | 45.0 | 72.5 ± 0.4 | 85.5 ± 0.4 | +13.0 ± 0.8 | 70.0 % | 121.0 |" in lines
    assert sum("**" in line for line in lines) == 1


def test_every_task_has_a_section_in_its_own_measure() -> None:
    points = grid_points("sst2", ("scaleot",), {}) + grid_points("wikitext", ("scaleot",), {}, text_figures)
    text = comparison_markdown(summarize(points, CONFIG, VERSIONS))
    assert text.index("## sst2") < text.index("## wikitext") < text.index("perplexity (less is better)")


@pytest.mark.parametrize("variant", ["a|b", "| --- |"])
def test_no_text_of_a_run_breaks_the_table(variant: str) -> None:
    text = comparison_markdown(summarize([example_point(settings={"variant": variant})], CONFIG, VERSIONS))
    [row] = [line for line in text.splitlines() if line.startswith("| scaleot")]
    assert row.replace("\\|", "").count("|") == 9


def test_the_last_lines_name_each_machine_and_its_days() -> None:
    origins = [{"machine": "A", "date": "2026-11-27"}, {"machine": "B, 1 thread", "date": "2026-11-26"}]
    points = [
        {**example_point(seed=0), "origins": origins},
        {**example_point(seed=1), "origins": [{"machine": "A", "date": "2026-11-25"}]},
    ]
    lines = comparison_markdown(summarize(points, CONFIG, VERSIONS)).splitlines()
    assert lines[-3:] == ["Computed on A: 2026-11-25 to 2026-11-27.", "", "Computed on B, 1 thread: 2026-11-26."]
    assert "Computed" not in comparison_markdown(summarize([example_point()], CONFIG, VERSIONS)), "older results"


BENCHMARKS = sorted((Path(__file__).parents[2] / "deploy" / "benchmarks").glob("*.json"))  # others lie in folders


@pytest.mark.parametrize("results", BENCHMARKS, ids=[path.stem for path in BENCHMARKS])
def test_the_tables_in_the_documentation_are_those_of_the_results_beside_them(results: Path) -> None:
    found = json.loads(results.read_text(encoding="utf-8"))
    comparison = summarize(found["points"], found["config"], found["versions"])
    assert results.with_suffix(".md").read_text(encoding="utf-8") == comparison_markdown(comparison)
    assert results.read_text(encoding="utf-8") == comparison.to_text()
    assert '"/' not in comparison.to_text(), "a path of the machine that made it"


@pytest.mark.parametrize("results", BENCHMARKS, ids=[path.stem for path in BENCHMARKS])
def test_results_are_of_the_run_file_beside_them(results: Path) -> None:
    """In every setting that there was when they were made."""
    run_file = results.with_suffix(".toml")
    asked = json.loads(read_run_file_elsewhere(run_file).model_dump_json().replace(f"{run_file.parent.resolve()}/", ""))
    found = json.loads(results.read_text(encoding="utf-8"))["config"]
    for values in (asked, found):
        if values.get("privacy", {}).get("mechanism") == "none":
            values["privacy"] = {"mechanism": "none"}  # nothing else of the section has an effect
    assert list(differences(asked, found)) == []


def differences(asked: Any, found: Any, path: str = "") -> Iterator[str]:
    if not isinstance(found, dict) or not isinstance(asked, dict):
        yield from () if asked == found else (f"{path}: {asked!r} asked, {found!r} found",)
        return
    for name in {*found, *(asked if path.startswith("compare.") else ())}:
        yield from differences(asked.get(name), found.get(name), f"{path}.{name}".removeprefix("."))


PAGE = BENCHMARKS[0].with_name("README.md").read_text(encoding="utf-8")
SECTIONS = [section for section in PAGE.split("\n## ") if re.search(r"\]\([a-z0-9-]+\.md\)", section)]


@pytest.mark.parametrize("section", SECTIONS, ids=[section.partition("\n")[0] for section in SECTIONS])
def test_every_mean_and_deviation_in_a_table_of_the_page_stands_in_its_results(section: str) -> None:
    """To the page's one decimal; a section has its tables from the files that it links."""
    spread = re.compile(r"(-?\d+\.\d+) ± (\d+\.\d+)")
    files = re.findall(r"\]\(([a-z0-9-]+\.md)\)", section)
    text = "".join((BENCHMARKS[0].with_name(name)).read_text(encoding="utf-8") for name in files)
    measured = {tuple(map(float, found)) for found in spread.findall(text)}
    rows = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    for told in (tuple(map(float, found)) for found in spread.findall(rows)):
        assert any(max(abs(a - b) for a, b in zip(told, one, strict=True)) < 0.0501 for one in measured), told


FROM_THE_DATA_ALONE = "| always the same position"
"""A row that no model is behind, of tables that are older than the floors in the results."""


@pytest.mark.parametrize("section", SECTIONS, ids=[section.partition("\n")[0] for section in SECTIONS])
def test_every_other_figure_in_a_table_of_the_page_stands_in_its_results_too(section: str) -> None:
    """Whatever has a decimal, but for the first column, which names settings; shares of the reference from the JSON."""
    decimal = re.compile(r"(?<![\d.,])\d[\d,]*\.\d+")
    names = re.findall(r"\]\(([a-z0-9-]+)\.md\)", section)
    texts = [BENCHMARKS[0].with_name(f"{name}.md").read_text(encoding="utf-8") for name in names]
    measured = {float(figure.replace(",", "")) for text in texts for figure in decimal.findall(text)}
    for name in names:
        found = json.loads(BENCHMARKS[0].with_name(f"{name}.json").read_text(encoding="utf-8"))
        shares = [row["share_of_full_fine_tuning"] for row in found["rows"] + found["means"]]
        measured |= {100 * share["mean"] for share in shares if share}
    rows = [line for line in section.splitlines() if line.startswith("|") and not line.startswith(FROM_THE_DATA_ALONE)]
    for told in (figure for row in rows for figure in decimal.findall("|".join(row.split("|")[2:]))):
        assert any(abs(float(told.replace(",", "")) - one) < 0.0501 for one in measured), told


def test_the_rank_correlations_in_the_page_are_those_of_the_report_beside_it() -> None:
    [section] = [part for part in PAGE.split("\n## ") if "](layers/" in part]
    layers = json.loads(BENCHMARKS[0].with_name("layers").joinpath("smollm2-135m.json").read_text(encoding="utf-8"))
    found, measures = layers["rank_correlation"], ["importance", "leave_one_out", "angular_change", "cka", "random"]
    rows = [line.split("|")[2:6] for line in section.splitlines() if line.startswith("|")][2:]
    told = {
        (one, other): cell.strip()
        for one, row in zip(measures, rows, strict=False)
        for other, cell in zip(measures[1:], row, strict=True)
    }
    pairs = list(itertools.combinations(measures, 2))
    assert {pair: told[pair] for pair in pairs} == {(one, other): f"{found[one][other]:.2f}" for one, other in pairs}
