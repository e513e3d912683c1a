import io
import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from rich.console import Console

from fl_server.compress import Workbench, load_full_model, public_blocks
from fl_server.layer_report import Cost, LayerReport, report_layers
from fl_server.layer_table import print_layers
from scaleot_core import cli
from scaleot_core.compression.controls import activation_changes, leave_one_out, random_scores
from scaleot_core.compression.plan import LayerRole
from scaleot_core.config import to_toml, with_settings
from scaleot_core.progress import SilentReporter
from scaleot_core.run_file import RunFile
from tests.support.tiny_task import tiny_run, write_task

MEASURES = ["importance", "leave_one_out", "angular_change", "cka", "random"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFile:
    """A run file for a tiny model of six layers and a little public text."""
    return tiny_run(write_task(tmp_path_factory.mktemp("material")), "seed=5")


@pytest.fixture(scope="module")
def report(run: RunFile, tmp_path_factory: pytest.TempPathFactory) -> LayerReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALEOT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return report_layers(run, 6, SilentReporter())


def test_every_measure_scores_every_layer_on_the_first_blocks_of_the_public_text(
    run: RunFile, report: LayerReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALEOT_CACHE", str(tmp_path))
    full = load_full_model(run.model, SilentReporter())
    blocks = public_blocks(full, run.importance, SilentReporter())[:6]
    changes = activation_changes(full, blocks, batch_size=4, reporter=SilentReporter())
    assert list(report.scores) == MEASURES
    assert report.scores["importance"] == Workbench(full, run, SilentReporter()).importance().scores
    assert report.scores["leave_one_out"] == leave_one_out(full, blocks, batch_size=4, reporter=SilentReporter())
    assert report.scores["angular_change"] == changes.angular_change
    assert report.scores["cka"] == changes.cka
    assert report.scores["random"] == random_scores(6, 5)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_run_files_measure_chooses_the_layers_that_are_replaced(
    run: RunFile, report: LayerReport, measure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run file's blocks are the report's; chance alone has stage 1's seed, where the report has the run's."""
    monkeypatch.setenv("SCALEOT_CACHE", str(tmp_path))
    asked = with_settings(run, {"emulator.layer_scores": measure, "emulator.public_blocks": 6, "importance.seed": 0})
    full = load_full_model(asked.model, SilentReporter())
    plan = Workbench(full, asked, SilentReporter()).build(asked.emulator).plan
    scores = random_scores(6, 0) if measure == "random" else report.scores[measure]
    candidates = sorted(set(range(6)) - set(plan.adapter_layers), key=lambda index: scores[index])
    assert plan.indices(LayerRole.REPLACED) == (candidates[0],), "alpha 0.25 of four layers is one"


def test_the_cost_counts_every_token_that_the_model_read(report: LayerReport) -> None:
    """Importance: 8 blocks for the closed form; 4 steps of 2 models, 2 comparisons of 3 candidates, 4 blocks each."""
    tokens = {cost.measures: cost.tokens for cost in report.costs}
    assert tokens == {
        ("importance",): (8 + 4 * 2 * 4 + 2 * 3 * 4) * 16,
        ("leave_one_out",): 7 * 6 * 16,
        ("angular_change", "cka"): 6 * 16,
        ("random",): 0,
    }
    seconds = {cost.measures: cost.seconds for cost in report.costs}
    assert all(seconds[measures] > 0 for measures in tokens if measures != ("random",))


def test_the_verb_prints_one_document_and_estimates_importance_once(
    run: RunFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SCALEOT_CACHE", str(tmp_path))
    file = tmp_path / "run.toml"
    file.write_text(to_toml(run), encoding="utf-8")
    verb = EntryPoint("report", "fl_server.commands:report", "scaleot.verbs")
    documents = []
    for _ in range(2):
        assert cli.run(["report", str(file), "--blocks", "4", "--json"], [verb]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[0]["num_blocks"] == 4
    assert documents[0]["layers"] == documents[1]["layers"]
    assert documents[0]["costs"][0] == documents[1]["costs"][0]
    assert documents[0]["costs"][0]["seconds"] > 0


def planted(**changes: object) -> LayerReport:
    fields = {
        "model": "a model",
        "public_text": "a text",
        "num_blocks": 2,
        "block_tokens": 8,
        "scores": {"importance": (3.0, 1.0, 2.0), "leave_one_out": (0.3, 0.2, 0.1), "random": (0.5, 0.5, 0.5)},
        "costs": (Cost(("importance",), None, 640), Cost(("leave_one_out",), 1.25, 64)),
    }
    return LayerReport(**{**fields, **changes})


def test_the_document_has_ranks_and_rank_correlations() -> None:
    """Ranks (1, 3, 2) and (1, 2, 3): squared differences sum to 2, so rho = 1 - 6 * 2 / (3 * 8) = 0.5."""
    document = json.loads(json.dumps(planted().to_json(), allow_nan=False))
    assert document["layers"][1] == {
        "index": 1,
        "scores": {"importance": 1.0, "leave_one_out": 0.2, "random": 0.5},
        "ranks": {"importance": 3, "leave_one_out": 2, "random": 2},
    }
    assert document["rank_correlation"]["importance"] == {
        "importance": pytest.approx(1),
        "leave_one_out": pytest.approx(0.5),
        "random": None,
    }
    assert document["costs"][0] == {"measures": ["importance"], "seconds": None, "tokens": 640}


def test_the_table_shows_layers_agreement_and_cost() -> None:
    stream = io.StringIO()
    print_layers(planted(), Console(file=stream, width=80))
    lines = [line.split() for line in stream.getvalue().splitlines()]
    assert ["1", "1", "3", "0.2", "2", "0.5", "2"] in lines
    assert ["importance", "1.00", "0.50", "undefined"] in lines
    assert ["importance", "not", "measured", "640"] in lines
    assert ["leave-one-out", "1.2", "64"] in lines


def test_the_table_of_a_deep_model_fits_a_terminal_of_80_columns() -> None:
    signs = dict(zip(MEASURES, (-1, -1, 1, 1, 1), strict=True))  # the last three are never negative
    scores = {measure: tuple(sign * 1e-5 * (index + 3.21) for index in range(48)) for measure, sign in signs.items()}
    stream = io.StringIO()
    print_layers(planted(scores=scores), Console(file=stream, width=80))
    assert "…" not in stream.getvalue()
    row = ["47", *["-0.000502", "48"] * 2, *["0.000502", "1"] * 3]
    assert row in [line.split() for line in stream.getvalue().splitlines()]


def test_more_blocks_than_there_are_read_what_there_is(run: RunFile, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCALEOT_CACHE", str(tmp_path))
    report = report_layers(run, 10**6, SilentReporter())
    full = load_full_model(run.model, SilentReporter())
    assert report.num_blocks == len(public_blocks(full, run.importance, SilentReporter())) < 10**6
