import gc
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from fl_server.comparison.compare import compare
from fl_server.simulation import simulate
from scaleot_core import progress
from scaleot_core.compression.adaptation import adaptation_scores
from scaleot_core.config import to_toml
from scaleot_core.errors import DataError, InputError, RunFileError
from scaleot_core.progress import LogReporter, SilentReporter
from tests.support.tiny_models import save_tiny_model
from tests.support.tiny_task import tiny_run, write_task

GRID = """
[compare]
builders = ["scaleot", "uniform"]
seeds = [0, 1]
[compare.vary]
"emulator.replaced_layer_share" = [0.25, 0.5]
"""
COMPARE = """
import json, sys
from pathlib import Path
from fl_server.comparison.compare import compare
from scaleot_core.config import read_run_file
from scaleot_core.progress import SilentReporter
print("ready", flush=True)
sys.stdin.readline()
json.dump(compare(read_run_file(Path(sys.argv[1]), []), Path(sys.argv[2]), SilentReporter()), sys.stdout)
"""


DROP_BY_CONTROL = '"emulator.builder" = "importance_drop", "emulator.layer_scores" = "cka"'
ONE_STEP = (
    "evaluation.full_fine_tuning=false",
    "evaluation.examples=6",
    "federation.clients=1",
    "federation.rounds=1",
    "federation.local_steps=1",
    'compare.builders=["uniform"]',
    "compare.seeds=[0]",
)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_task(tmp_path_factory.mktemp("task"))
    os.environ["SCALEOT_CACHE"] = str(root / "cache")
    return root


def without_seconds_and_origins(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    times = ("importance_seconds", "build_seconds")
    return [
        {
            **{key: value for key, value in one.items() if key not in ("tuning_seconds", "origins")},
            "emulator": {key: value for key, value in one["emulator"].items() if key not in times},
        }
        for one in results
    ]


def without_plug_in(value: Any) -> Any:
    if isinstance(value, dict):
        compared = ("gap", "recovered") if "gap" in value else ()
        return {key: without_plug_in(one) for key, one in value.items() if key not in compared}
    return [without_plug_in(one) for one in value] if isinstance(value, list) else value


def test_a_point_is_what_the_whole_federation_gives(task: Path, tmp_path: Path) -> None:
    attacked = ("model_privacy.strong_emulator_steps=2", "model_privacy.healing_steps=[0, 2]", "compare.attacks=true")
    run = tiny_run(
        task, 'compare.builders=["scaleot"]', "compare.seeds=[6]", "seed=6", *attacked, "federation.clients_per_round=2"
    )
    [point] = compare(run, tmp_path / "comparison", SilentReporter())
    (tmp_path / "run").mkdir()
    report = simulate(run, tmp_path / "run", SilentReporter()).to_json()
    assert len({tuple(one["clients"]) for one in report["federation"]["rounds"]}) > 1
    assert point["results"] == report["results"]
    assert [one["train_loss"] for one in point["rounds"]] == [
        one["train_loss"] for one in report["federation"]["rounds"]
    ]
    assert point["emulator"]["verbatim_share"] == report["emulator"]["verbatim_share"]
    assert point["attacks"] == without_plug_in({name: report["model_privacy"][name] for name in point["attacks"]})
    assert point["attacks"]["strong_emulator"]["metrics"] != point["results"]["emulator_tuned"]


@pytest.fixture(scope="module")
def points_by_rule(task: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    directory = tmp_path_factory.mktemp("rules")
    (directory / "grid.toml").write_text(
        '[compare]\nbuilders = ["uniform"]\nseeds = [0]\n[compare.vary]\n"federation.aggregation" = '
        '["fedavg", "product", "median", "trimmed_mean", "multi_krum", "geometric_median"]\n'
    )
    run = tiny_run(task, "federation.clients=5", "evaluation.full_fine_tuning=false", file=directory / "grid.toml")
    points = compare(run, directory / "out", SilentReporter())
    return {point["labels"]["federation.aggregation"]: point for point in points}


@pytest.mark.parametrize(
    "aggregation",
    [
        "product",
        "geometric_median",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("median", "trimmed_mean", "multi_krum")),
    ],
)
def test_a_point_under_any_rule_is_what_the_whole_federation_gives(
    task: Path, tmp_path: Path, points_by_rule: dict[str, dict[str, Any]], aggregation: str
) -> None:
    asked = ("federation.clients=5", f"federation.aggregation={aggregation}", "evaluation.full_fine_tuning=false")
    report = simulate(tiny_run(task, *asked, "emulator.builder=uniform"), tmp_path, SilentReporter()).to_json()
    shares = {"geometric_median": "client_shares", "multi_krum": "client_shares", "product": "residual_share"}
    assert all((shares.get(aggregation) in one) is (aggregation in shares) for one in report["federation"]["rounds"])
    point = points_by_rule[aggregation]
    assert point["results"]["plug_in"] == report["results"]["plug_in"]
    assert point["results"]["emulator_tuned"] == report["results"]["emulator_tuned"]
    assert [one["train_loss"] for one in point["rounds"]] == [
        one["train_loss"] for one in report["federation"]["rounds"]
    ]
    assert point["results"]["plug_in"] != points_by_rule["fedavg"]["results"]["plug_in"], "it is another rule"


def num_results_in(directory: Path, what: str = "*") -> int:
    return len(list((directory / "results").glob(f"{what}-{'[0-9a-f]' * 32}.json")))


def test_a_killed_comparison_goes_on_where_it_was_and_gives_the_same(task: Path, tmp_path: Path) -> None:
    """SIGKILL a random time after a random number of new results, again and again; then one comes through.

    The killed ones have a cache of their own, so that layers are scored, and may be killed, there too.
    """
    (tmp_path / "grid.toml").write_text(GRID)
    run = tiny_run(task, file=tmp_path / "grid.toml")
    (tmp_path / "run.toml").write_text(to_toml(run))
    started = time.monotonic()
    undisturbed = compare(run, tmp_path / "undisturbed", SilentReporter())
    seconds = time.monotonic() - started
    num_results, moments = num_results_in(tmp_path / "undisturbed"), random.Random(7)
    returncodes, command = [], [sys.executable, "-c", COMPARE, str(tmp_path / "run.toml"), str(tmp_path / "killed")]
    cache = {**os.environ, "SCALEOT_CACHE": str(tmp_path / "cache")}
    for least in (0, 1, 1):
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=cache)
        assert child.stdout and child.stdin and child.stdout.readline() == "ready\n"
        child.stdin.write("go\n")
        child.stdin.flush()
        enough = num_results_in(tmp_path / "killed") + moments.randint(least, num_results // 5)
        while child.poll() is None and num_results_in(tmp_path / "killed") < enough:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, seconds / num_results))
        child.kill()
        child.communicate()
        returncodes.append(child.returncode)
    assert returncodes.count(-signal.SIGKILL) >= 2, f"most must be killed, not end by themselves: {returncodes}"
    assert 0 < num_results_in(tmp_path / "killed") < num_results, "no kill came in the middle: the test shows nothing"
    assert without_seconds_and_origins(
        compare(run, tmp_path / "killed", SilentReporter())
    ) == without_seconds_and_origins(undisturbed)


def test_a_point_found_in_the_store_counts_as_done_and_is_not_timed(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOG_INTERVAL_SECONDS", 0.0)
    one = ('compare.builders=["uniform"]', "evaluation.full_fine_tuning=false")
    compare(tiny_run(task, *one, "compare.seeds=[0]"), tmp_path / "out", SilentReporter())
    stream = io.StringIO()
    compare(tiny_run(task, *one, "compare.seeds=[0, 1, 2]"), tmp_path / "out", LogReporter(stream))
    found, computed, _, _ = [line for line in stream.getvalue().splitlines() if line.startswith("points: ")]
    assert found == "points: 1/3"
    assert computed.startswith("points: 2/3  ") and computed.endswith(" s left")


def test_evaluations_are_shared_between_points(task: Path, tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(GRID)
    compare(tiny_run(task, file=tmp_path / "grid.toml"), tmp_path / "out", SilentReporter())
    names = [path.name.rsplit("-", 1)[0] for path in (tmp_path / "out" / "results").iterdir()]
    counts = {name: names.count(name) for name in names}
    once_a_seed = {"full-fine-tuning": 2, "attacks": 2}
    assert counts == {"zero-shot": 1, "emulator": 4, "emulator-zero-shot": 4, "tuned": 8, **once_a_seed}


def test_the_round_with_the_least_validation_loss_on_the_emulator_is_plugged_in(task: Path, tmp_path: Path) -> None:
    unlearnt = tmp_path / "unlearnt.jsonl"  # its answers become less likely with every round of training on others
    unlearnt.write_text((task / "test.jsonl").read_text().replace('positive"', 'xxx"').replace('negative"', 'zzz"'))
    wild = ("federation.rounds=4", f"data.validation={unlearnt}", f"data.test={unlearnt}")
    one = ('compare.builders=["uniform"]', "compare.seeds=[0]", "evaluation.full_fine_tuning=false")
    run = tiny_run(task, *wild, *one)
    [point] = compare(run, tmp_path / "out", SilentReporter())
    losses = [one["validation_loss"] for one in point["rounds"]]
    assert point["chosen_round"] == 1 + losses.index(min(losses)) < 4
    assert point["results"]["emulator_tuned"]["loss"] == pytest.approx(min(losses)) != losses[-1]
    (tmp_path / "run").mkdir()
    uniform = tiny_run(task, *wild, "emulator.builder=uniform", "evaluation.full_fine_tuning=false")
    report = simulate(uniform, tmp_path / "run", SilentReporter()).to_json()
    assert report["results"]["plug_in"] == point["results"]["plug_in"]


def test_a_point_whose_training_diverges_is_told_and_the_others_run(task: Path, tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(
        '[compare]\nbuilders = ["uniform"]\nseeds = [0]\n[compare.vary]\n"federation.learning_rate" = [1e38, 1e-3]\n'
    )
    run = tiny_run(task, "federation.optimizer=sgd", "evaluation.full_fine_tuning=false", file=tmp_path / "grid.toml")
    wild, tame = compare(run, tmp_path / "out", SilentReporter())
    assert "diverged at 3 of 3 clients in round" in wild["failed"] and "quorum of 2 is" in wild["failed"]
    assert "plug_in" not in wild["results"]
    assert tame["failed"] is None and "plug_in" in tame["results"]


def test_an_impossible_grid_is_refused_before_any_work(task: Path, tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text('[compare.vary]\n"emulator.num_adapter_layers" = [2, 7]\n')
    with pytest.raises(RunFileError, match="got 7, expected at most 6"):
        compare(tiny_run(task, file=tmp_path / "grid.toml"), tmp_path / "out", SilentReporter())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("faulty", "fault"),
    [
        ("importance.block_tokens=400", "expected at most 128, which the model can read"),
        ("importance.text={task}/short.txt", "at least 10 blocks of public text"),
        ("emulator.public_blocks=2", "crash needs at least 3"),
        ("importance.candidates=200", "no 200 distinct candidates"),
        ("canary.text={task}/test.jsonl", "on no canary"),
    ],
)
def test_what_one_builder_alone_would_stumble_over_is_refused_before_any_work(
    task: Path, tmp_path: Path, faulty: str, fault: str
) -> None:
    (task / "short.txt").write_text("a film. " * 30)
    last = 'compare.builders=["uniform", "crash", "scaleot"]'
    with pytest.raises(InputError, match=fault):
        compare(tiny_run(task, last, faulty.format(task=task)), tmp_path / "out", SilentReporter())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("last", "text", "fault"),
    [
        ('"emulator.builder" = "gradot"', "importance.block_tokens=400", "expected at most 128"),
        ('"emulator.builder" = "crash"', "importance.block_tokens=400", "expected at most 128"),
        ('"emulator.builder" = "crash"', "importance.text={task}/two-blocks.txt", "at least 3 blocks .*, got 2"),
        ('"emulator.builder" = "distilled"', "importance.block_tokens=400", "expected at most 128"),
        ('"emulator.adapter_rule" = "gradient"', "importance.block_tokens=400", "expected at most 128"),
        ('"emulator.adapter_rule" = "gradient"', "importance.text={task}/empty.txt", "expected at least 2"),
        ('"model_privacy.healing_steps" = [2]', "importance.block_tokens=400", "expected at most 128"),
        (DROP_BY_CONTROL, "importance.block_tokens=400", "expected at most 128"),
    ],
)
def test_public_text_that_the_last_point_alone_cannot_read_is_refused_before_any_work(
    task: Path, tmp_path: Path, last: str, text: str, fault: str
) -> None:
    (task / "two-blocks.txt").write_text("a film. " * 8)
    (task / "empty.txt").write_text("")
    cheap = (
        *('compare.builders=["uniform"]', "compare.seeds=[0]"),
        *("compare.attacks=true", "evaluation.full_fine_tuning=false"),
    )
    grid = f"compare.variants={{ first = {{}}, last = {{ {last} }} }}"
    with pytest.raises(InputError, match=fault):
        compare(tiny_run(task, *cheap, grid, text.format(task=task)), tmp_path / "out", SilentReporter())
    assert not (tmp_path / "out").exists()


def test_more_held_back_examples_than_there_are_is_refused_before_any_work(task: Path, tmp_path: Path) -> None:
    asked = ('compare.builders=["uniform"]', "compare.seeds=[0]", "data.test=", "evaluation.full_fine_tuning=false")
    with pytest.raises(DataError, match="examples"):
        compare(
            tiny_run(task, *asked, 'compare.vary={"evaluation.examples" = [8, 500]}'),
            tmp_path / "out",
            SilentReporter(),
        )
    assert not (tmp_path / "out").exists()


def test_a_rule_s_scores_cost_every_row_that_needs_them_the_same(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def slow(*arguments: Any, **settings: Any) -> tuple[float, ...]:
        calls.append(arguments)
        time.sleep(0.4)
        return adaptation_scores(*arguments, **settings)

    monkeypatch.setattr("fl_server.compress.adaptation_scores", slow)
    asked = ('compare.builders=["uniform", "crash"]', "emulator.adapter_rule=gradient", "compare.seeds=[0]")
    points = compare(tiny_run(task, *asked, "evaluation.full_fine_tuning=false"), tmp_path / "out", SilentReporter())
    assert len(calls) == 1
    assert all(point["emulator"]["build_seconds"] >= 0.4 for point in points)


def test_another_tokenizer_or_chat_template_makes_every_result_another(task: Path, tmp_path: Path) -> None:
    shutil.copytree(task, tmp_path / "task")
    run = tiny_run(tmp_path / "task", *ONE_STEP)
    compare(run, tmp_path / "out", SilentReporter())
    first = num_results_in(tmp_path / "out")
    (tmp_path / "task" / "model" / "chat_template.jinja").write_text("{{ messages }}")
    compare(run, tmp_path / "out", SilentReporter())
    assert num_results_in(tmp_path / "out") == 2 * first


def test_public_text_that_no_point_reads_is_not_asked_for(task: Path, tmp_path: Path) -> None:
    one = ('compare.builders=["uniform"]', "compare.seeds=[0]", "evaluation.full_fine_tuning=false")
    [point] = compare(tiny_run(task, *one, "importance.block_tokens=400"), tmp_path / "out", SilentReporter())
    assert point["failed"] is None


def test_a_model_with_a_table_of_positions_is_tuned_on_records_longer_than_the_table(tmp_path: Path) -> None:
    write_task(tmp_path)
    save_tiny_model(tmp_path / "model", "gpt2")
    long = {"context": "the film is good " * 60, "label": 1, "choices": ["negative", "positive"]}
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(3 * (json.dumps(long) + "\n"))
    run = tiny_run(tmp_path, 'compare.builders=["uniform"]', "compare.seeds=[0]", "federation.local_steps=12")
    [point] = compare(run, tmp_path / "out", SilentReporter())
    assert point["failed"] is None and point["results"]["plug_in"]["loss"] > 0


def num_models() -> int:
    return sum(type(one) is LlamaForCausalLM for one in gc.get_objects())


def test_at_most_one_emulator_is_in_memory(task: Path, tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(GRID)
    full_and_emulator = 2

    class Census(SilentReporter):
        def __init__(self) -> None:
            self.most = 0

        def note(self, message: str) -> None:
            gc.collect()
            self.most = max(self.most, num_models() - before)

    gc.collect()
    before, census = num_models(), Census()
    compare(tiny_run(task, "evaluation.full_fine_tuning=false", file=tmp_path / "grid.toml"), tmp_path / "out", census)
    assert census.most == full_and_emulator


def test_a_faulty_task_file_is_found_before_any_work(task: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"context": "a"}\n')
    (tmp_path / "grid.toml").write_text(
        f'[compare.tasks]\ngood = {{ train = "{task}/train.jsonl", test = "{task}/test.jsonl" }}\n'
        'broken = { train = "broken.jsonl", test = "broken.jsonl" }\n'
    )
    with pytest.raises(DataError, match=r"broken\.jsonl"):
        compare(tiny_run(task, file=tmp_path / "grid.toml"), tmp_path / "out", SilentReporter())
    assert not (tmp_path / "out").exists()


def test_every_emulator_has_attack_figures_of_its_own(task: Path, tmp_path: Path) -> None:
    asked = (
        "compare.attacks=true",
        "model_privacy.strong_emulator_steps=2",
        'compare.vary={"emulator.replaced_layer_share" = [0.25, 0.75]}',
    )
    first, second = compare(tiny_run(task, *ONE_STEP, *asked), tmp_path / "out", SilentReporter())
    assert num_results_in(tmp_path / "out", "attacks") == 2
    assert first["attacks"]["strong_emulator"]["metrics"] != second["attacks"]["strong_emulator"]["metrics"]


def test_points_that_differ_in_data_or_adapter_share_what_does_not_depend_on_it_and_nothing_else(
    task: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join((task / "train.jsonl").read_text().splitlines(keepends=True)[20:]))
    variants = {
        "plain": "{}",
        "adapter": '{ "adapter.kind" = "bottleneck" }',
        "examples": '{ "evaluation.examples" = 12 }',
        "train": f'{{ "data.train" = "{other}" }}',
        "validation": f'{{ "data.validation" = "{other}" }}',
    }

    def compared(*names: str, into: str) -> list[dict[str, Any]]:
        asked = ", ".join(f"{name} = {variants[name]}" for name in names)
        run = tiny_run(task, *ONE_STEP, f"compare.variants={{ {asked} }}")
        return without_seconds_and_origins(compare(run, tmp_path / into, SilentReporter()))

    points = {point["labels"]["variant"]: point for point in compared(*variants, into="shared")}
    counts = {what: num_results_in(tmp_path / "shared", what) for what in ("emulator", "zero-shot", "tuned")}
    assert counts == {"emulator": 1, "zero-shot": 2, "tuned": len(variants)}
    assert compared("train", into="alone") == [points["train"]]


def test_settings_that_a_builder_ignores_cost_no_second_tuning(task: Path, tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(
        '[compare]\nbuilders = ["uniform"]\nseeds = [0]\n[compare.vary]\n"emulator.removed_rank_share" = [0.0, 0.5]\n'
    )
    run = tiny_run(task, "evaluation.full_fine_tuning=false", file=tmp_path / "grid.toml")
    first, second = compare(run, tmp_path / "out", SilentReporter())
    assert first["results"] == second["results"] and first["emulator"]["digest"] == second["emulator"]["digest"]
    assert len(list((tmp_path / "out" / "results").glob("tuned-*.json"))) == 1
