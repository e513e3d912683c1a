import pytest

from scaleot_core.report.comparison import summarize
from scaleot_core.report.comparison_markdown import comparison_markdown
from tests.support.example_comparison import ALPHA, CONFIG, VERSIONS, example_point, grid_points, text_figures


def test_a_task_has_its_floors_and_a_row_for_each_builder_and_setting_with_the_best_in_bold() -> None:
    points = grid_points("sst2", ("scaleot", "uniform"), {ALPHA: [0.0, 0.5]})
    lines = comparison_markdown(summarize(points, CONFIG, VERSIONS)).splitlines()
    assert "zero-shot: 56.7  " in lines and "full fine-tuning: 88.7 ± 0.0" in lines
    assert "| scaleot | 0.5 | 45.0 | 72.5 ± 0.4 | 85.5 ± 0.4 | +13.0 ± 0.8 | 70.0 % | 121.0 |" in lines
    assert sum("**" in line for line in lines) == 1


def test_a_delta_that_rounds_to_nothing_is_not_below_it() -> None:
    figures = [(0.5, 0.5, 0.8, plug_in, 0.9) for plug_in in (0.775, 0.8125, 0.8124)]
    points = [example_point(seed=seed, figures=one) for seed, one in enumerate(figures)]
    assert "| +0.0 ± 2.2 |" in comparison_markdown(summarize(points, CONFIG, VERSIONS))


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
