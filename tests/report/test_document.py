import json
import math
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleot_core.evaluation import Metrics
from scaleot_core.report.document import accuracy_error, binomial_error
from tests.support.example_report import choice_metrics, example_report


def test_the_document_has_exactly_the_keys_that_tools_rely_on() -> None:
    document = json.loads(example_report().to_text())
    keys = {section: list(value) for section, value in document.items() if isinstance(value, dict)}
    assert list(document) == [
        *(
            "results",
            "emulator",
            "federation",
            "bundle",
            "privacy",
            "model_privacy",
            "seconds",
            "peak_memory_bytes",
            "config",
            "versions",
        )
    ]
    assert keys["results"] == ["zero_shot", "emulator_zero_shot", "emulator_tuned", "plug_in", "full_fine_tuning"]
    assert keys["emulator"] == [
        *("builder", "parameters", "bytes", "size_share", "verbatim_share", "trained_share", "layers", "importance")
    ]
    assert keys["federation"] == ["rounds", "bytes_down_per_client", "bytes_up_per_client"]
    assert keys["bundle"] == ["bytes", "digest", "recipients"]
    assert keys["privacy"] == [*("mechanism", "epsilon_spent", "delta", "unit", "neighbouring", "sampling", "clients")]
    assert keys["model_privacy"] == [
        *("verbatim_share", "gap", "floors", "strong_emulator", "healing", "not_measured", "disclosure", "seconds")
    ]
    assert keys["seconds"] == ["load", "importance", "build", "seal", "open", "train", "aggregate", "evaluate", "total"]
    assert list(document["emulator"]["layers"][0]) == ["index", "role", "rank"]
    assert list(document["federation"]["rounds"][0]) == ["round", "clients", "rejected", "train_loss", "seconds"]


def test_a_figure_that_a_task_does_not_have_is_left_out_and_a_reference_not_run_is_null() -> None:
    report = example_report()
    results = replace(report.results, plug_in=Metrics(loss=1.5, examples=7, perplexity=4.5), full_fine_tuning=None)
    document = replace(report, results=results).to_json()
    assert document["results"]["plug_in"] == {"loss": 1.5, "examples": 7, "perplexity": 4.5}
    assert document["results"]["full_fine_tuning"] is None


def test_a_round_says_what_its_rule_of_aggregation_made_of_it_and_nothing_where_it_has_nothing_to_say() -> None:
    [first, *_] = example_report().federation.rounds
    robust = replace(first, client_shares={"clinic-1": 1.0, "clinic-2": 0.0}).to_json()
    assert robust["client_shares"] == {"clinic-1": 1.0, "clinic-2": 0.0} and "residual_share" not in robust
    assert replace(first, residual_share=0.0).to_json()["residual_share"] == 0.0
    assert not {"client_shares", "residual_share"} & first.to_json().keys()


def test_a_number_that_is_not_finite_is_null_and_the_text_stays_json() -> None:
    report = example_report()
    rounds = (replace(report.federation.rounds[0], train_loss=math.nan),)
    text = replace(report, federation=replace(report.federation, rounds=rounds)).to_text()
    document = json.loads(text, parse_constant=pytest.fail)
    assert document["federation"]["rounds"][0]["train_loss"] is None


def test_the_standard_error_of_an_accuracy_is_that_of_the_binomial() -> None:
    assert accuracy_error(choice_metrics(0.1, 0.5)) == pytest.approx(0.5 / math.sqrt(300))
    assert accuracy_error(Metrics(loss=0.1, examples=3)) is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_no_mean_of_figures_from_0_to_1_has_a_larger_error_than_the_binomial(figures: list[float]) -> None:
    error = statistics.pstdev(figures) / math.sqrt(len(figures))
    assert error <= binomial_error(statistics.fmean(figures), len(figures)) + 1e-9
