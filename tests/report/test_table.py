import io
from dataclasses import replace

from rich.console import Console

from scaleot_core.evaluation import Metrics
from scaleot_core.report import Report, print_table
from tests.support.example_report import answered_report, example_report


def printed(report: Report, width: int = 80) -> str:
    stream = io.StringIO()
    print_table(report, Console(file=stream, width=width))
    return stream.getvalue()


def row(text: str, name: str) -> str:
    table = text[: text.index("held-out examples")]
    [only] = [line for line in table.splitlines() if line.strip().startswith(name)]
    return only


def test_the_table_has_the_five_models_with_who_can_run_them_and_standard_errors() -> None:
    text = printed(example_report())
    assert row(text, "zero-shot").split() == ["zero-shot", "model", "owner", "0.6810", "56.7", "±", "2.9", "55.7"]
    assert row(text, "emulator tuned").split()[-5:] == ["0.4550", "78.3", "±", "2.4", "77.3"]
    for name in ("emulator zero-shot", "plug-in", "full fine-tuning"):
        assert row(text, name)
    assert "300 held-out examples" in text


def test_the_table_fits_eighty_columns() -> None:
    assert max(len(line.rstrip()) for line in printed(example_report()).splitlines()) <= 80


def test_below_the_table_stand_emulator_traffic_time_and_what_was_refused() -> None:
    text = " ".join(printed(example_report()).split())
    assert "202.5 MB, 75.2 % of the full model; 68.8 % of the full model's parameters leave unchanged" in text
    assert "down 189.0 MB, up 741.0 kB in 3 rounds" in text
    assert "importance 120.4" in text and "evaluate 70.5, model privacy 9.1, total 301.7" in text
    assert "1 update refused: E_NORM" in text
    assert "mechanism none: no guarantee; updates can leak training text" in text


def test_a_finding_says_whether_it_is_beyond_two_standard_errors_of_the_paired_difference() -> None:
    """87 and 9 of 300 records differ; sqrt(p (1 - p) / 299) is the error of a share p that does."""
    text = " ".join(printed(example_report()).split())
    of_the_difference = "two standard errors of the difference"
    assert f"plug-in against zero-shot: +29.0 points (beyond {of_the_difference}, 5.2), loss" in text
    assert f"plug-in against full fine-tuning: -3.0 points (beyond {of_the_difference}, 2.0), loss" in text


def test_records_that_only_one_of_two_models_answers_widen_the_error() -> None:
    report = example_report()
    results = report.results
    assert results.plug_in.by_record is not None
    other_way = replace(results.plug_in, by_record=results.plug_in.by_record[::-1])
    text = " ".join(printed(replace(report, results=replace(results, plug_in=other_way))).split())
    # the reference alone answers 43 of 300, the plug-in alone 34: 2 sqrt((77 / 300 - 0.03^2) / 299)
    assert "plug-in against full fine-tuning: -3.0 points (within two standard errors of the difference, 5.8)" in text


def test_a_finding_of_generated_answers_is_of_their_f1() -> None:
    text = " ".join(printed(answered_report()).split())
    assert "against zero-shot: +10.0 points of F1 (beyond two standard errors of the difference, 0.0), loss 2.9" in text


def test_a_task_without_accuracy_shows_perplexity_and_a_reference_not_run_has_no_row() -> None:
    report = example_report()
    names = ("zero_shot", "emulator_zero_shot", "emulator_tuned", "plug_in")
    texts = {name: Metrics(loss=2.0, examples=50, perplexity=7.389) for name in names}
    text = printed(replace(report, results=replace(report.results, **texts, full_fine_tuning=None)))
    assert "perplexity" in text and "7.39" in text
    assert "accuracy %" not in text and "full fine-tuning" not in text
    assert "plug-in against zero-shot: loss 2.000 against 2.000" in text
