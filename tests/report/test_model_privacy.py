import re
from dataclasses import replace

import pytest

from scaleot_core.evaluation import Metrics
from scaleot_core.model_privacy.floors import Floors
from scaleot_core.model_privacy.healing import HealingPoint
from scaleot_core.model_privacy.recovery import Recovery
from scaleot_core.report import NotMeasured, Report, ReportedAttacks, ReportedModelPrivacy
from scaleot_core.report.model_privacy import Gap, gap_between
from scaleot_core.report.page import page
from scaleot_core.report.plots import healing_plot
from tests.report.test_page import outline
from tests.report.test_table import printed
from tests.support.example_report import (
    answer_metrics,
    answered_report,
    attacked_model_privacy,
    example_report,
    quiet_model_privacy,
)


def attacked() -> Report:
    return replace(example_report(), model_privacy=attacked_model_privacy())


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_a_gap_is_above_zero_where_the_plug_in_is_better() -> None:
    plug_in, other = Metrics(loss=0.3, examples=4, accuracy=0.9), Metrics(loss=0.5, examples=4, accuracy=0.8)
    gap = gap_between(plug_in, other)
    assert (gap.accuracy, gap.loss) == (pytest.approx(0.1), pytest.approx(0.2))
    text = Metrics(loss=0.5, examples=4, perplexity=1.6)
    assert gap_between(replace(text, loss=0.75), text) == Gap(None, -0.25)
    answers = gap_between(answer_metrics(0.3, 0.4), answer_metrics(0.3, 0.1))
    assert (answers.accuracy, answers.f1) == (0.0, pytest.approx(0.3))


def test_what_was_not_measured_is_null_in_the_document() -> None:
    section = example_report().to_json()["model_privacy"]
    assert section["strong_emulator"] is None and section["healing"] is None
    assert section["verbatim_share"] == 0.688
    assert section["gap"] == {
        "accuracy": pytest.approx(0.857 - 0.783),
        "loss": pytest.approx(0.455 - 0.331),
        "f1": None,
    }
    assert section["floors"]["majority"] == {"label": 1, "accuracy": 0.513, "examples": 300}
    assert section["floors"]["random_initialisation"]["loss"] == 10.812
    assert section["disclosure"]["new_layers"] == [] and not section["disclosure"]["is_recorded"]
    assert section["disclosure"]["layers"][3] == {
        "index": 3,
        "level": "stand-in",
        "attention_rank_share": 0.0,
        "feed_forward_share": 0.0,
    }


def test_what_was_measured_is_in_the_document() -> None:
    section = attacked().to_json()["model_privacy"]
    assert section["strong_emulator"]["steps"] == 3
    assert section["strong_emulator"]["gap"]["accuracy"] == pytest.approx(0.857 - 0.817)
    way = 0.857 - 0.513  # from the most frequent answer, the higher floor, to the plug-in
    assert section["strong_emulator"]["recovered"]["accuracy"] == pytest.approx((0.817 - 0.513) / way)
    assert section["healing"][1]["tuned"]["recovered"]["accuracy"] == pytest.approx((0.817 - 0.513) / way)
    assert [point["steps"] for point in section["healing"]] == [0, 50]
    assert section["healing"][1]["public_tokens"] == 25_600
    assert section["healing"][1]["recovered"] == {"accuracy": 0.5, "loss": 0.995, "f1": None}
    assert section["healing"][1]["tuned"]["metrics"]["accuracy"] == 0.817
    assert section["disclosure"]["new_layers"] == [18] and section["disclosure"]["emulators"] == 2


def test_a_task_without_choices_has_no_majority_floor() -> None:
    report = example_report()
    floors = Floors(None, Metrics(loss=10.8, examples=3, perplexity=49_000.0))
    privacy = replace(quiet_model_privacy(), attacks=ReportedAttacks(floors, None, None))
    report = replace(report, model_privacy=privacy)
    assert report.to_json()["model_privacy"]["floors"]["majority"] is None
    assert "random weights loss 10.800" in one_line(printed(report))
    assert "most frequent answer" not in printed(report)


@pytest.mark.parametrize("show", [printed, page], ids=["table", "page"])
def test_what_was_not_measured_says_so_and_names_the_setting_that_measures_it(show) -> None:  # type: ignore[no-untyped-def]
    text = one_line(show(example_report()))
    assert "not measured: set model_privacy.strong_emulator_steps" in text
    assert "not measured: set model_privacy.healing_steps" in text
    assert "no record is kept: set model_privacy.disclosure_record" in text
    assert "most frequent answer 51.3 %, random weights 48.7 %, loss 10.812" in text
    assert "the plug-in is 7.4 points ahead and 0.124 in loss ahead of the tuned emulator" in text


@pytest.mark.parametrize("show", [printed, page], ids=["table", "page"])
def test_an_attack_that_could_not_be_run_says_why(show) -> None:  # type: ignore[no-untyped-def]
    privacy = attacked().model_privacy
    missing = ReportedAttacks(privacy.attacks.floors, NotMeasured("memory ran out"), NotMeasured("it needs 9 GB"))
    report = replace(attacked(), model_privacy=replace(privacy, attacks=missing))
    text = one_line(show(report))
    assert "not measured: memory ran out" in text and "not measured: it needs 9 GB" in text
    section = report.to_json()["model_privacy"]
    assert section["strong_emulator"] is section["healing"] is None
    assert section["not_measured"] == {"strong_emulator": "memory ran out", "healing": "it needs 9 GB"}


@pytest.mark.parametrize("show", [printed, page], ids=["table", "page"])
def test_attacks_and_the_warning_are_told(show) -> None:  # type: ignore[no-untyped-def]
    text = one_line(show(attacked()))
    assert "3 steps: 81.7 %, loss 0.401; the plug-in is 4.0 points ahead and 0.070 in loss ahead" in text
    assert "50 steps on 25600 tokens of public text" in text
    assert "50.0 % of the accuracy and 99.5 % of the loss" in text
    assert "2 emulators of this model recorded, together 73.1 % of the parameters verbatim" in text
    assert "layers: 24 exact, 6 as a stand-in only" in text
    assert "this emulator reveals more of layer 18 than the emulators before it" in text
    assert "not measured" not in text


@pytest.mark.parametrize("show", [printed, page], ids=["table", "page"])
def test_generated_answers_are_told_by_their_f1_and_not_by_exact_match(show) -> None:  # type: ignore[no-untyped-def]
    text = one_line(show(answered_report()))
    assert "the plug-in is 16.0 points of F1 ahead and 0.500 in loss ahead of the tuned emulator" in text
    assert "random weights F1 1.0 %, loss 10.812" in text
    assert "3 steps: F1 13.0 %, loss 3.100; the plug-in is 14.0 points of F1 ahead and 0.200 in loss ahead" in text
    assert "from the floor to the full model zero-shot: 25.0 % of the F1 and 90.0 % of the loss" in text


def test_generated_answers_have_their_f1_in_the_document_and_in_the_healing_curve() -> None:
    section = answered_report().to_json()["model_privacy"]
    assert section["gap"]["f1"] == pytest.approx(0.27 - 0.11)
    assert section["strong_emulator"]["gap"]["f1"] == pytest.approx(0.27 - 0.13)
    assert section["healing"][0]["recovered"] == {"accuracy": None, "loss": 0.9, "f1": 0.25}
    plot = healing_curve(answered_report())
    assert ">F1<" in plot and ">accuracy<" not in plot
    other = healing_curve(attacked())
    assert ">accuracy<" in other and ">F1<" not in other


def healing_curve(report: Report) -> str:
    attacks = report.model_privacy.attacks
    return healing_plot(attacks.healing or (), attacks.floors, report.results.plug_in)


def test_the_healing_curve_has_a_line_for_what_is_tuned_too_where_that_was_measured() -> None:
    assert ">accuracy, tuned: of the plug-in<" in healing_curve(attacked())
    untuned = [replace(point, tuned=None) for point in attacked_model_privacy().attacks.healing or ()]
    attacks = attacked_model_privacy().attacks
    assert "tuned: of" not in healing_plot(untuned, attacks.floors, attacked().results.plug_in)


def test_the_page_draws_the_healing_curve_where_it_was_measured() -> None:
    assert [tag for tag, _ in outline(page(attacked())).seen].count("svg") == 4
    assert [tag for tag, _ in outline(page(example_report())).seen].count("svg") == 3


def healed(points: tuple[HealingPoint, ...]) -> ReportedModelPrivacy:
    quiet = quiet_model_privacy()
    return replace(quiet, attacks=replace(quiet.attacks, healing=points))


def test_a_curve_with_nothing_to_recover_has_a_page_that_says_so() -> None:
    metrics = Metrics(loss=9.0, examples=3, perplexity=8000.0)
    points = (HealingPoint(5, 100, 4.0, metrics, Recovery(None, None), None),)
    text = page(replace(example_report(), model_privacy=healed(points)))
    outline(text)
    assert "nothing: the full model is not above the floors" in one_line(text)


def test_an_attack_below_the_floor_recovers_none() -> None:
    [_, last] = attacked_model_privacy().attacks.healing or ()
    below = healed((replace(last, recovered=Recovery(-0.5, 0.7)),))
    assert "none of the accuracy and 70.0 % of the loss" in one_line(
        printed(replace(example_report(), model_privacy=below))
    )


def test_the_table_with_everything_measured_fits_eighty_columns() -> None:
    assert max(len(line.rstrip()) for line in printed(attacked()).splitlines()) <= 80
