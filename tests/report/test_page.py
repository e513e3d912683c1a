import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from scaleot_core.errors import OutputError
from scaleot_core.evaluation import Metrics
from scaleot_core.privacy.units import PrivacyScope
from scaleot_core.report import ReportedFederation, ReportedPrivacy, ReportedRound, write_report
from scaleot_core.report.page import page
from scaleot_core.report.plots import results_plot
from tests.support.example_report import answered_report, example_report

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Outline(HTMLParser):
    """Collects the elements of a page and fails on one that is closed out of turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def whole_page() -> str:
    return page(example_report())


def outline(text: str) -> Outline:
    parser = Outline()
    parser.feed(text)
    assert parser.open == []
    return parser


def test_the_page_has_three_plots_and_needs_nothing_from_elsewhere(whole_page: str) -> None:
    elements = outline(whole_page).seen
    assert [tag for tag, _ in elements].count("svg") == 3
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(tag for tag, _ in elements)
    links = [
        value
        for _, attributes in elements
        for name, value in attributes.items()
        if name in ("href", "src", "xlink:href")
    ]
    assert all(link and link.startswith("#") for link in links)
    assert not re.search(r"url\((?!#)|@import", whole_page)


def test_the_page_states_the_results_and_the_limits(whole_page: str) -> None:
    text = re.sub(r"\s+", " ", whole_page)
    for claim in (
        "85.7 ± 2.0",
        "The verbatim share, 68.8 %, is the part of the full model that the data owners now hold bit for bit",
        "no proof of secrecy",
        "The updates carried no differential privacy",
        "One seed: nothing is said of other seeds",
        "clinic-3: E_NORM",
        "source = &quot;smollm2-135m&quot;",
    ):
        assert claim in text


def test_the_page_does_not_say_that_privacy_is_missing_where_a_mechanism_was_charged() -> None:
    scope = PrivacyScope("record", "add/remove", "Poisson sampling")
    report = replace(example_report(), privacy=ReportedPrivacy("dp-sgd", 3.5, 1e-5, scope, ()))
    text = page(report)
    assert "carried no differential privacy" not in text
    assert "Epsilon holds for record: somebody with several records has several times that" in text
    assert "dp-sgd, epsilon 3.5 at delta 1e-05 for record, neighbouring data sets by add/remove" in text


def test_text_from_a_run_cannot_become_markup() -> None:
    report = example_report()
    hostile = "<script>alert('x')</script>"
    rounds = (ReportedRound(1, (hostile,), {hostile: hostile}, None, 1.0),)
    text = page(
        replace(
            report,
            federation=ReportedFederation(rounds, 1, 1),
            bundle=replace(report.bundle, recipients=(hostile,), digest=hostile),
            emulator=replace(report.emulator, builder=hostile),
            config={**report.config, hostile: {hostile: hostile}, "model": {"source": hostile}},
            versions={hostile: hostile},
        )
    )
    assert hostile not in text
    assert "script" not in {tag for tag, _ in outline(text).seen}


def test_a_run_without_scores_without_accuracy_and_without_an_accepted_update_has_a_page() -> None:
    report = example_report()
    metrics = Metrics(loss=2.0, examples=1, perplexity=7.389)
    results = replace(
        report.results,
        zero_shot=metrics,
        emulator_zero_shot=metrics,
        emulator_tuned=metrics,
        plug_in=metrics,
        full_fine_tuning=None,
    )
    rounds = (ReportedRound(1, (), {"clinic-1": "E_TIMEOUT"}, None, 1.0),)
    text = page(
        replace(
            report,
            results=results,
            emulator=replace(report.emulator, importance=None),
            federation=replace(report.federation, rounds=rounds),
        )
    )
    assert "This builder needs no importance scores" in text and "1 held-out example;" in text
    outline(text)


def test_generated_answers_are_drawn_by_their_f1() -> None:
    drawn = results_plot(answered_report().results.measured())
    assert "F1, % (± at most one standard error)" in drawn and "accuracy" not in drawn
    assert "accuracy, % (± one standard error)" in results_plot(example_report().results.measured())


def test_both_files_are_written_and_the_same_report_gives_the_same_page(tmp_path: Path, whole_page: str) -> None:
    document, html = write_report(example_report(), tmp_path)
    assert document.read_text(encoding="utf-8") == example_report().to_text()
    assert html.read_text(encoding="utf-8") == whole_page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_a_directory_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"report\.json, report\.html cannot be written to .*nowhere: No such file"):
        write_report(example_report(), tmp_path / "nowhere")
