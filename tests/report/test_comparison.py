import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleot_core.report.comparison import (
    NOT_FINITE,
    Comparison,
    Spread,
    attack_title,
    attacks_measured,
    best_row,
    distinguishing_labels,
    floors,
    front_rows,
    pareto_front,
    spread_over,
    summarize,
)
from scaleot_core.report.comparison_phrases import limits, notes, table_cells, task_line
from tests.support.example_comparison import (
    ALPHA,
    CONFIG,
    VERSIONS,
    answer_figures,
    choice_figures,
    example_point,
    text_figures,
)


def summary(*points: dict) -> Comparison:  # type: ignore[type-arg]
    return summarize(points, CONFIG, VERSIONS)


def test_mean_deviation_and_delta_over_seeds_are_those_computed_by_hand() -> None:
    figures = [(0.5, 0.4, 0.6, 0.7, 0.8), (0.5, 0.4, 0.7, 0.9, 0.9), (0.5, 0.4, 0.65, 0.8, 0.8)]
    [row] = summary(*(example_point(seed=seed, figures=accuracies) for seed, accuracies in enumerate(figures))).rows
    plug_in = row.results["plug_in"]["accuracy"]
    assert (plug_in.mean, plug_in.deviation, plug_in.count) == (pytest.approx(0.8), pytest.approx(0.1), 3)
    assert row.results["plug_in"]["loss"].mean == pytest.approx(0.2)
    assert row.delta is not None and row.delta.mean == pytest.approx((0.1 + 0.2 + 0.15) / 3)
    assert row.delta.deviation == pytest.approx(0.05)
    share = row.share_of_full_fine_tuning
    assert share is not None and share.mean == pytest.approx((7 / 8 + 1 + 1) / 3)
    assert row.headline("zero_shot") == Spread(0.5, 0.0, 3)
    assert (row.seeds, row.failures, row.examples) == ((0, 1, 2), (), 300)
    assert (row.verbatim_share, row.size_share, row.stage_one_seconds) == (0.688, 0.752, 122.5)


def test_several_tasks_have_a_mean_of_each_builder_seed_by_seed() -> None:
    accuracies = {
        "arc": [(0.5, 0.4, 0.6, 0.7, 0.8), (0.5, 0.4, 0.5, 0.9, 1.0)],
        "sciq": [(0.7, 0.6, 0.6, 0.9, 1.0)] * 2,
    }
    points = [
        example_point(builder, task=task, seed=seed, figures=figures)
        for builder in ("scaleot", "uniform")
        for task, seeds in accuracies.items()
        for seed, figures in enumerate(seeds)
    ]
    compared = summary(*points)
    assert list(compared.blocks) == ["arc", "sciq", "mean over 2 tasks"]
    row, other = compared.means
    assert (row.builder, other.builder, row.seeds, row.examples) == ("scaleot", "uniform", (0, 1), 600)
    zero_shot, plug_in, delta = row.headline("zero_shot"), row.headline("plug_in"), row.delta
    assert zero_shot is not None and zero_shot.mean == pytest.approx(0.6)
    assert plug_in is not None and plug_in.mean == pytest.approx((0.8 + 0.9) / 2)
    assert plug_in.deviation == pytest.approx(0.1 / 2**0.5)
    assert delta is not None and delta.mean == pytest.approx((0.2 + 0.35) / 2)
    share = row.share_of_full_fine_tuning
    assert share is not None and share.mean == pytest.approx((0.8 / 0.9 + 0.9 / 1.0) / 2)


def test_a_run_that_failed_on_one_task_is_in_no_mean_over_tasks() -> None:
    compared = summary(
        *(
            example_point(task=task, seed=seed)
            for task in ("arc", "sciq")
            for seed in (0, 1)
            if (task, seed) != ("arc", 1)
        ),
        example_point(task="arc", seed=1, failed="training diverged"),
    )
    [row] = compared.means
    assert row.failures == ("arc: training diverged",)
    plug_in = row.headline("plug_in")
    assert plug_in is not None and (plug_in.mean, plug_in.count) == (pytest.approx(0.857), 1)


def test_one_task_and_tasks_of_perplexity_have_no_mean_over_tasks() -> None:
    text = example_point(task="wikitext", figures=(30.0, 90.0, 16.0, 13.0, 12.0), figures_of=text_figures)
    for compared in (summary(example_point()), summary(example_point(), text)):
        assert compared.means == () and set(compared.blocks) == set(compared.tasks)


def test_one_seed_has_no_deviation() -> None:
    [row] = summary(example_point()).rows
    assert row.headline("plug_in") == Spread(0.857, None, 1)
    assert spread_over([]) is None and spread_over([None, 2.0]) == Spread(2.0, None, 1)


def test_a_task_without_accuracy_is_judged_by_perplexity_of_which_less_is_better() -> None:
    best, worse = [
        example_point(builder, figures=(30.0, 90.0, 16.0, plug_in, 12.0), figures_of=text_figures)
        for builder, plug_in in (("scaleot", 13.0), ("uniform", 15.0))
    ]
    rows = summary(worse, best).rows
    chosen = best_row(rows)
    assert chosen is rows[1] and chosen.measure == "perplexity"
    assert chosen.delta == Spread(-3.0, None, 1)
    assert chosen.share_of_full_fine_tuning is not None
    assert chosen.share_of_full_fine_tuning.mean == pytest.approx(12 / 13)


def test_generated_answers_are_judged_by_f1_of_which_more_is_better() -> None:
    worse, best = [
        example_point(builder, figures=(0.17, 0.04, 0.11, plug_in, 0.3), figures_of=answer_figures)
        for builder, plug_in in (("uniform", 0.2), ("scaleot", 0.27))
    ]
    compared = summary(worse, best)
    chosen = best_row(compared.rows)
    assert chosen is compared.rows[1] and chosen.measure == "f1"
    assert chosen.quality == 0.27 and front_rows(compared.rows) == (chosen,)
    delta, share = chosen.delta, chosen.share_of_full_fine_tuning
    assert delta is not None and delta.mean == pytest.approx(0.27 - 0.11)
    assert share is not None and share.mean == pytest.approx(0.27 / 0.3)
    assert (table_cells(compared.rows)[1]["plug-in"], task_line(compared.rows)[:5]) == ("27.0", "F1, %")
    text = " ".join(limits(compared))
    assert "300 held-out examples alone leave an F1 of 27.0 % uncertain by at most 2.6 points (one standard" in text
    assert "not above" not in text


def test_a_mean_over_tasks_is_of_f1_where_all_have_one_and_else_of_accuracy() -> None:
    first, second = [
        example_point(task=task, figures=(0.2, 0.1, 0.1, plug_in), figures_of=answer_figures)
        for task, plug_in in (("webqs", 0.2), ("trivia", 0.4))
    ]
    [answers] = summary(first, second).means
    assert answers.measure == "f1" and answers.quality == pytest.approx(0.3)
    [mixed] = summary(first, example_point(figures=(0.5, 0.4, 0.6, 0.7))).means
    assert mixed.measure == "accuracy" and mixed.quality == pytest.approx(0.35)


def test_a_failed_seed_counts_in_no_figure_of_the_tuned_models_and_its_row_is_never_the_best() -> None:
    failed = example_point(seed=1, failed="training diverged", figures=(0.5, 0.4, 0.99, 0.99, 0.8))
    rows = summary(example_point(figures=(0.5, 0.4, 0.6, 0.9, 0.8)), failed, example_point("uniform")).rows
    assert rows[0].failures == ("training diverged",) and rows[0].to_json()["failed"] == 1
    assert rows[0].headline("plug_in") == Spread(0.9, None, 1)
    full = rows[0].headline("full_fine_tuning")
    assert full is not None and full.count == 2
    assert rows[0].quality is None and best_row(rows) is rows[1] and front_rows(rows) == (rows[1],)


def test_a_row_of_which_every_seed_failed_has_neither_tuned_models_nor_delta() -> None:
    [row] = summary(example_point(failed="x"), example_point(seed=1, failed="y")).rows
    assert "plug_in" not in row.results and "emulator_tuned" not in row.results
    assert row.delta is None and row.share_of_full_fine_tuning is None and best_row([row]) is None


def test_a_tuned_model_without_a_finite_figure_counts_as_failed() -> None:
    point = example_point(figures=(30.0, 90.0, 16.0, 13.0), figures_of=text_figures)
    point["results"]["plug_in"].update(loss=None, perplexity=None)
    [row] = summary(point).rows
    assert row.failures == (NOT_FINITE,) and row.headline("plug_in") is None


def test_a_stage_one_cost_is_unknown_where_importance_came_ready_made() -> None:
    rows = summary(example_point(emulator={"importance_seconds": None}), example_point("uniform")).rows
    assert [row.stage_one_seconds for row in rows] == [None, 2.0]


def test_floors_stand_once_and_apart_only_where_a_setting_changes_them() -> None:
    points = [
        example_point(builder, settings={"adapter.kind": kind}, figures=(0.5, 0.4, 0.6, 0.7, full))
        for builder in ("scaleot", "uniform")
        for kind, full in (("lora", 0.8), ("layers", 0.9))
    ]
    found = [(floor.model, dict(floor.labels), floor.spread.mean) for floor in floors(summary(*points).rows)]
    assert found == [
        ("zero_shot", {}, 0.5),
        ("full_fine_tuning", {"adapter.kind": "lora"}, 0.8),
        ("full_fine_tuning", {"adapter.kind": "layers"}, 0.9),
    ]


def attacks(strong: float | None = None, healed: float | None = None, tuned: float | None = None) -> dict[str, Any]:
    def tuned_whole(accuracy: float | None) -> dict[str, Any] | None:
        return None if accuracy is None else {"steps": 4, "metrics": choice_figures(accuracy)}

    none = {"steps": 0, "zero_shot": choice_figures(0.3), "tuned": tuned_whole(strong)}
    early = {"steps": 20, "zero_shot": choice_figures(0.4), "tuned": tuned_whole(strong)}
    last = {"steps": 50, "zero_shot": choice_figures(healed or 0.0), "tuned": tuned_whole(tuned)}
    return {
        "floors": {
            "majority": {"label": 1, "accuracy": 0.52, "examples": 300},
            "random_initialisation": choice_figures(0.48),
        },
        "strong_emulator": tuned_whole(strong),
        "healing": None if healed is None else [none, early, last],
    }


def test_attacks_are_figures_of_a_row_and_their_floors_stand_beside_zero_shot() -> None:
    points = [
        example_point(builder, seed=seed, attacks=attacks(strong + 0.02 * seed))
        for builder, strong in (("scaleot", 0.6), ("uniform", 0.5))
        for seed in (0, 1)
    ]
    row, other = summary(*points).rows
    strong, other_strong = row.headline("strong_emulator"), other.headline("strong_emulator")
    assert strong is not None and other_strong is not None
    assert strong.mean == pytest.approx(0.61) and strong.deviation == pytest.approx(0.02 / 2**0.5)
    assert other_strong.mean == pytest.approx(0.51)
    assert attacks_measured([row]) == ["strong_emulator"]
    found = {floor.model: floor.spread.mean for floor in floors((row, other))}
    assert found == {
        "zero_shot": 0.567,
        "full_fine_tuning": 0.887,
        "majority": 0.52,
        "random_initialisation": pytest.approx(0.48),
    }


def test_healing_is_a_figure_of_every_budget_tuned_where_it_was() -> None:
    untuned, tuned = (
        summary(example_point(attacks=one)).rows[0]
        for one in (attacks(healed=0.55), attacks(strong=0.6, healed=0.55, tuned=0.7))
    )
    assert attacks_measured([untuned]) == ["healed_by_20", "healed_by_50"]
    assert attacks_measured([untuned, tuned]) == ["healed_by_20", "healed_by_50", "strong_emulator"]
    found = [[row.headline(f"healed_by_{steps}") for steps in (20, 50)] for row in (untuned, tuned)]
    assert [[one and one.mean for one in of_row] for of_row in found] == [[0.4, 0.55], [0.6, 0.7]]
    assert attack_title("healed_by_50") == "healed by 50 steps"


def test_attacks_have_a_mean_over_tasks() -> None:
    points = [example_point(task=task, attacks=attacks(strong)) for task, strong in (("sst2", 0.6), ("arc", 0.8))]
    [row] = summary(*points).means
    strong, majority = row.headline("strong_emulator"), row.headline("majority")
    assert strong is not None and strong.mean == pytest.approx(0.7)
    assert majority is not None and majority.mean == 0.52


def test_every_row_of_a_table_has_a_column_for_an_attack_that_one_of_them_measured() -> None:
    rows = summary(example_point(attacks=attacks(0.6)), example_point("uniform", attacks=attacks())).rows
    first, second = table_cells(rows)
    assert list(first) == list(second)
    assert (first["strong emulator"], second["strong emulator"]) == ("60.0", "")
    assert not any(title.startswith("healed") for title in first)
    assert "strong emulator" in notes(rows)
    plain = summary(example_point()).rows
    assert "strong emulator" not in table_cells(plain)[0] and "strong" not in notes(plain)


def test_a_plug_in_that_an_attack_reaches_is_no_gain() -> None:
    compared = summary(example_point(attacks=attacks(0.9)))
    assert any("1 not above strong emulator" in limit for limit in limits(compared))
    assert not any("strong emulator" in limit for limit in limits(summary(example_point(attacks=attacks(0.8)))))


def test_what_distinguishes_a_group_is_what_it_shares_and_the_others_do_not() -> None:
    points = [
        example_point(builder, settings={ALPHA: alpha, "variant": "plain"})
        for builder in ("scaleot", "uniform")
        for alpha in (0.0, 0.5)
    ]
    rows = summary(*points).rows
    assert distinguishing_labels(rows[:2], rows) == {"builder": "scaleot"}
    assert distinguishing_labels(rows[:1], rows) == {"builder": "scaleot", ALPHA: 0.0}
    assert distinguishing_labels(rows, rows) == {}


def test_the_pareto_front_of_a_hand_made_set() -> None:
    #          on the front, beaten by the first, on it, beaten in cost alone, equal to the third, on it
    points = [(0.2, 0.5), (0.3, 0.4), (0.5, 0.7), (0.6, 0.7), (0.5, 0.7), (0.9, 0.8)]
    assert pareto_front(points) == [0, 2, 4, 5]
    assert pareto_front([]) == []


@given(st.lists(st.tuples(*[st.integers(0, 5).map(float)] * 2), min_size=1, max_size=12))
def test_every_point_off_the_front_is_beaten_by_one_on_it(points: list[tuple[float, float]]) -> None:
    front = [points[position] for position in pareto_front(points)]
    assert front
    for cost, quality in points:
        beaten = any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in front)
        assert beaten != ((cost, quality) in front)


def test_the_document_has_exactly_the_keys_that_tools_rely_on_and_no_number_that_json_cannot_hold() -> None:
    point = example_point(settings={ALPHA: 0.25})
    point["rounds"][0]["validation_loss"] = math.nan
    document = json.loads(summary(point, example_point("uniform")).to_text(), parse_constant=pytest.fail)
    assert list(document) == ["rows", "means", "points", "config", "versions"]
    assert list(document["rows"][0]) == [
        *("labels", "measure", "seeds", "failed", "examples", "results", "delta", "share_of_full_fine_tuning"),
        *("verbatim_share", "size_share", "stage_one_seconds"),
    ]
    assert list(document["rows"][0]["results"]["plug_in"]["accuracy"]) == ["mean", "deviation", "count"]
    assert document["rows"][0]["labels"] == {"task": "sst2", "builder": "scaleot", ALPHA: 0.25}
    assert document["points"][0]["rounds"][0]["validation_loss"] is None
    assert document["config"] == CONFIG and document["versions"] == VERSIONS
