import json
import re
from pathlib import Path

import pytest

from scaleot_core.errors import OutputError
from scaleot_core.report.comparison import Comparison, summarize
from scaleot_core.report.comparison_page import comparison_page, write_comparison
from scaleot_core.report.comparison_phrases import limits
from scaleot_core.report.comparison_plots import (
    alpha_plot,
    beta_plot,
    comparison_plots,
    cost_plot,
    front_plot,
    importance_plot,
)
from scaleot_core.report.svg import MODEL_COLOURS
from tests.report.test_page import outline
from tests.support.example_comparison import (
    ALPHA,
    BETA,
    CONFIG,
    TARGET,
    VERSIONS,
    answer_figures,
    choice_figures,
    example_point,
    grid_points,
    text_figures,
)

CRITERION, KIND = "emulator.rank_criterion", "adapter.kind"


def summary(points: list[dict]) -> Comparison:  # type: ignore[type-arg]
    return summarize(points, CONFIG, VERSIONS)


def page_of(comparison: Comparison) -> str:
    return comparison_page(comparison, comparison_plots(comparison))


def test_a_page_with_every_plot_needs_nothing_from_elsewhere() -> None:
    settings = {"emulator.num_adapter_layers": [4], ALPHA: [0.0, 0.5], BETA: [0.0, 0.9]}
    points = grid_points("sst2", ("scaleot", "uniform"), settings)
    text = page_of(summary(points))
    elements = outline(text).seen
    assert [tag for tag, _ in elements].count("svg") == 5
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(tag for tag, _ in elements)
    links = [
        value for _, attributes in elements for name, value in attributes.items() if name.endswith(("href", "src"))
    ]
    assert all(link and link.startswith("#") for link in links)
    assert not re.search(r"url\((?!#)|@import", text)
    assert "default-src 'none'" in text
    assert "<p>The best plug-in is 87.0 ± 0.4 (scaleot, N_a 4, alpha 0, beta 0), 98.1 % of full fine-tuning" in text


def test_a_plot_is_there_only_where_its_axis_varies() -> None:
    comparison = summary([example_point("uniform", settings={ALPHA: 0.25, BETA: 0.0})])
    rows = comparison.rows
    assert alpha_plot(rows) is None and beta_plot(rows) is None and front_plot(rows) is None
    assert importance_plot(comparison) is None and cost_plot(comparison) is None
    assert "<svg" not in page_of(comparison)


def test_a_sweep_of_one_builder_has_a_panel_for_each_rank_target_and_a_line_for_each_model() -> None:
    rows = summary(grid_points("t", ("scaleot",), {BETA: [0.0, 0.9], TARGET: ["attention", "ffn", "both"]})).rows
    plot = beta_plot(rows)
    assert plot is not None
    for words in ("rank of attention", "rank of the FFN", "rank of both", "emulator tuned", "full fine-tuning"):
        assert plot.svg.count(words) >= 1, words
    assert plot.svg.count('id="axes_') == 3


def test_a_sweep_has_a_row_of_panels_for_every_setting_of_what_else_varies() -> None:
    targets = {TARGET: ["attention", "ffn", "both"]}
    points = grid_points("t", ("scaleot",), {CRITERION: ["weight", "activation"], **targets, BETA: [0.25, 0.5, 0.75]})
    plot = beta_plot(summary(points).rows)
    assert plot is not None and plot.svg.count('id="axes_') == 6
    assert f">{CRITERION} weight<" in plot.svg and f">{CRITERION} activation<" in plot.svg
    assert plot.svg.count(">rank of both<") == 2 and "fixed" not in plot.caption
    only_weight = beta_plot(summary([one for one in points if one["labels"][CRITERION] == "weight"]).rows)
    assert only_weight is not None
    three, six = (one.svg.count(f"stroke: {MODEL_COLOURS['plug_in']}") for one in (only_weight, plot))
    assert 5 * three < 3 * six <= 6 * three, "as much again, but for the legend"
    assert f"the rest fixed at {CRITERION} weight" in only_weight.caption


def test_a_sweep_of_variants_with_a_builder_each_draws_the_models_as_lines() -> None:
    points = [
        point
        for builder in ("scaleot", "uniform")
        for point in grid_points("t", (builder,), {"variant": [builder], ALPHA: [0.0, 0.5]})
    ]
    plot = alpha_plot(summary(points).rows)
    assert plot is not None and plot.svg.count('id="axes_') == 2
    assert ">builder uniform, variant uniform<" in plot.svg and ">emulator tuned<" in plot.svg


def test_a_sweep_says_which_settings_it_leaves_out() -> None:
    points = grid_points("t", ("scaleot",), {ALPHA: [0.0, 0.5], BETA: [number / 10 for number in range(10)]})
    plot = alpha_plot(summary(points).rows)
    assert plot is not None and plot.svg.count('id="axes_') == 6
    assert plot.caption.endswith("in the table: 4 more settings (beta 0.6; beta 0.7; beta 0.8 and others).")
    assert ">beta 0.5<" in plot.svg and ">beta 0.6<" not in plot.svg


def test_each_setting_of_a_sweep_has_its_own_reference() -> None:
    points = [
        point
        for kind, figures_of in (("lora", choice_figures), ("layers", lambda accuracy: choice_figures(accuracy / 2)))
        for point in grid_points("t", ("scaleot",), {KIND: [kind], ALPHA: [0.0, 0.5]}, figures_of)
    ]
    plot = alpha_plot(summary(points).rows)
    assert plot is not None
    heights = [float(y) for y in re.findall(r'd="M [\d.]+ ([\d.]+) \nL [\d.]+ \1 \n"[^>]*stroke-dasharray', plot.svg)]
    zero_shot, full, half_zero_shot, half_full = heights[:4]
    assert zero_shot - full == pytest.approx(2 * (half_zero_shot - half_full), rel=1e-3)


def test_the_cost_is_of_the_machine_that_each_part_was_computed_on() -> None:
    plot = cost_plot(summary(grid_points("t", ("scaleot", "uniform"), {})))
    assert plot is not None and "this machine" not in plot.caption
    assert "importance on the machine that learnt it, the rest in this run" in plot.caption


def test_generated_answers_are_drawn_by_their_f1() -> None:
    rows = summary(grid_points("t", ("scaleot",), {ALPHA: [0.0, 0.5]}, answer_figures)).rows
    plots = alpha_plot(rows), front_plot(rows)
    assert all(plot is not None and "F1, %" in plot.svg and "accuracy" not in plot.svg for plot in plots)


def test_a_sweep_of_builders_has_a_panel_for_each_model_and_says_what_it_holds_fixed() -> None:
    rows = summary(grid_points("t", ("scaleot", "uniform"), {ALPHA: [0.0, 0.5], BETA: [0.3]}, text_figures)).rows
    plot = alpha_plot(rows)
    assert plot is not None and plot.svg.count('id="axes_') == 3
    assert "the rest fixed at beta 0.3" in plot.caption
    assert ">uniform<" in plot.svg and "perplexity (less is better)" in plot.svg


def test_the_front_plot_names_the_front_and_the_importance_plot_has_a_panel_for_each_set_of_scores() -> None:
    points = [
        example_point(figures=(0.5, 0.4, 0.6, 0.8), emulator={"verbatim_share": 0.5}, settings={"variant": "own"}),
        example_point(
            figures=(0.5, 0.4, 0.6, 0.7),
            emulator={"verbatim_share": 0.6, "importance": [0.1, 0.2, 0.3, 0.4]},
            settings={"variant": "other"},
        ),
    ]
    comparison = summary(points)
    front, importance = front_plot(comparison.rows), importance_plot(comparison)
    assert front is not None and front.caption.endswith("the least share first: scaleot, variant own.")
    assert importance is not None and importance.svg.count('id="axes_') == 2
    assert "variant own" in importance.svg and "variant other" in importance.svg


def test_text_from_a_run_can_become_neither_markup_nor_a_formula() -> None:
    hostile = "<script>$\\frac{1$</script>"
    points = [
        example_point(
            task=hostile,
            settings={"variant": f"{hostile}{number}"},
            emulator={"importance": [float(number), 1.0], "verbatim_share": 0.1 * number},
            figures=(0.5, 0.4, 0.6, 0.7 + 0.1 * number),
        )
        for number in range(2)
    ]
    points[1]["failed"] = hostile
    config = {"model": {"source": hostile}, hostile: {hostile: hostile}}
    text = page_of(summarize(points, config, {hostile: hostile}))
    assert hostile not in text
    assert "script" not in {tag for tag, _ in outline(text).seen}


def test_the_limits_are_computed_from_the_figures() -> None:
    points = [
        example_point(builder, seed=seed, figures=(0.5, 0.4, 0.6, accuracy + 0.02 * seed, 0.9))
        for builder, accuracy in (("scaleot", 0.80), ("uniform", 0.79), ("crash", 0.45))
        for seed in range(3)
    ]
    text = " ".join(limits(summary(points)))
    assert "One model, smollm2-135m, and 1 task (sst2)" in text
    assert "A deviation over 3 seeds is itself known to about 50.0 % only, and knows nothing of stage 1" in text
    assert "300 held-out examples alone leave an accuracy of 82.0 % uncertain by 2.2 points" in text
    assert "sst2: 1 of 2 other rows within two standard errors over the seeds of the best plug-in" in text
    assert "of 3 plug-ins 1 not above zero-shot and 1 not above emulator tuned" in text
    assert "failed" not in text and "unknown" not in text


def test_the_limits_of_one_seed_with_a_failure_and_an_unknown_cost() -> None:
    points = [example_point(emulator={"importance_seconds": None}), example_point("uniform", failed="x")]
    text = " ".join(limits(summary(points)))
    assert "One seed: nothing says how far another seed would move any figure." in text
    assert "1 of 2 runs failed" in text and "A stage-1 cost is unknown" in text
    assert "two standard errors" not in text


def test_all_files_are_written_and_the_same_comparison_gives_the_same_page(tmp_path: Path) -> None:
    comparison = summary([example_point()])
    (tmp_path / "comparison.json").write_text("the store's stamp")
    table, _, page = write_comparison(comparison, tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"comparison.json", "page.html", "plots", "table.json", "table.md"}
    assert len(json.loads(table.read_text(encoding="utf-8"))["points"]) == 1
    assert page.read_text(encoding="utf-8") == page_of(comparison)


def test_every_plot_of_the_page_is_a_file_of_its_own_too(tmp_path: Path) -> None:
    settings = {"emulator.num_adapter_layers": [4], ALPHA: [0.0, 0.5]}
    builders = ("scaleot", "uniform")
    comparison = summary(grid_points("a", builders, settings) + grid_points("b", builders, settings))
    write_comparison(comparison, tmp_path)
    files = {path.stem: path.read_text(encoding="utf-8") for path in (tmp_path / "plots").iterdir()}
    assert files.keys() == {"alpha-a", "front-a", "alpha-b", "front-b", "alpha", "front", "importance", "cost"}
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for name, text in files.items():
        assert outline(text).seen[0][0] == "svg" and 'xmlns="http://www.w3.org/2000/svg"' in text, name
        picture, caption = re.sub("<desc>.*</desc>", "", text), re.findall("<desc>(.*)</desc>", text)
        assert f"{picture}<figcaption>{caption[0]}</figcaption>" in page, name


def test_no_plot_of_an_earlier_table_stays_beside_a_new_one(tmp_path: Path) -> None:
    write_comparison(summary(grid_points("a", ("scaleot", "uniform"), {ALPHA: [0.0, 0.5]})), tmp_path)
    (tmp_path / "plots" / "mine.txt").write_text("kept")
    assert (tmp_path / "plots" / "alpha-a.svg").exists()
    write_comparison(summary([example_point("uniform")]), tmp_path)
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["mine.txt"]


def test_a_directory_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    names = r"table\.json, table\.md, page\.html"
    with pytest.raises(OutputError, match=rf"{names} cannot be written to .*nowhere: No such file"):
        write_comparison(summary([example_point()]), tmp_path / "nowhere")
