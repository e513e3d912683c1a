import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from fl_server.output import new_output
from fl_server.simulation import simulate
from scaleot_core.adapters.plug_in import plugged_in
from scaleot_core.config import read_run_file, to_toml
from scaleot_core.errors import DataError, InputError, OutputError
from scaleot_core.models.loading import load_model
from scaleot_core.progress import LogReporter, SilentReporter
from tests.support.compilers import needs_compiler
from tests.support.tiny_task import QUESTION, tiny_run, write_task

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def finished(material: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One whole run that several tests look at."""
    directory = tmp_path_factory.mktemp("finished")
    os.environ["SCALEOT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    simulate(tiny_run(material), directory, SilentReporter())
    return directory, json.loads((directory / "report.json").read_text())


def test_the_report_says_what_happened(finished: tuple[Path, dict[str, Any]]) -> None:
    report = finished[1]
    assert [len(one["clients"]) for one in report["federation"]["rounds"]] == [3, 3]
    assert report["bundle"]["recipients"] == ["data-owner-0", "data-owner-1", "data-owner-2"]
    assert len(report["emulator"]["importance"]) == len(report["emulator"]["layers"]) == 6
    assert report["federation"]["bytes_down_per_client"] > report["bundle"]["bytes"]
    assert len(report["results"]) == 5
    for measured in report["results"].values():
        assert set(measured) == {"loss", "accuracy", "accuracy_norm", "examples"}
        assert measured["examples"] == 20
    assert report["results"]["plug_in"]["loss"] < report["results"]["zero_shot"]["loss"]
    stages = [value for stage, value in report["seconds"].items() if stage != "total"]
    assert sum(stages) <= report["seconds"]["total"]


def test_the_output_holds_what_the_readme_promises(finished: tuple[Path, dict[str, Any]]) -> None:
    directory = finished[0]
    assert {path.name for path in directory.iterdir()} == {
        "report.json",
        "report.html",
        "run.toml",
        "adapter",
        "bundle",
        "owner.pub",
        "importance",
    }
    assert read_run_file(directory / "run.toml", []).federation.clients == 3


def test_the_saved_adapter_is_pefts_own_and_plugs_into_the_full_model(
    finished: tuple[Path, dict[str, Any]], material: Path
) -> None:
    full = load_model(material / "model", dtype=torch.float32, device=torch.device("cpu"))
    ids = torch.tensor(full.tokenizer(QUESTION)["input_ids"])[None]
    before = full.model(ids).logits
    tuned = PeftModel.from_pretrained(full.model, finished[0] / "adapter")
    assert not torch.allclose(tuned(ids).logits, before)
    from scaleot_core.evaluation import evaluate
    from scaleot_core.training.data import read_records

    records = read_records(material / "test.jsonl")[:20]
    metrics = evaluate(tuned, full.tokenizer, records, reporter=SilentReporter())
    assert metrics.loss == pytest.approx(finished[1]["results"]["plug_in"]["loss"], rel=1e-6)


def test_a_run_with_the_same_seed_repeats_to_the_last_digit(
    finished: tuple[Path, dict[str, Any]], material: Path, tmp_path: Path
) -> None:
    again = simulate(tiny_run(material), tmp_path, SilentReporter()).to_json()
    assert again["results"] == finished[1]["results"]
    assert again["emulator"] == finished[1]["emulator"]
    losses = [[one["train_loss"] for one in each["federation"]["rounds"]] for each in (again, finished[1])]
    assert losses[0] == losses[1]


def test_another_seed_gives_another_run(finished: tuple[Path, dict[str, Any]], material: Path, tmp_path: Path) -> None:
    other = simulate(tiny_run(material, "seed=1"), tmp_path, SilentReporter()).to_json()
    assert other["results"]["plug_in"] != finished[1]["results"]["plug_in"]
    assert other["results"]["zero_shot"] == finished[1]["results"]["zero_shot"]


def test_a_round_that_the_canary_throws_away_leaves_the_adapter_of_the_round_before(
    material: Path, tmp_path: Path
) -> None:
    """The canary's answers are all wrong: round 1 learns to answer at all, round 2 to answer right."""
    rows = [json.loads(line) for line in (material / "train.jsonl").read_text().splitlines()]
    contrary = [json.dumps({**row, "label": 1 - row["label"]}) + "\n" for row in rows]
    (tmp_path / "contrary.jsonl").write_text("".join(contrary))
    training = ("federation.local_steps=40", "federation.learning_rate=1e-2", "evaluation.full_fine_tuning=false")
    canary = (f"canary.text={tmp_path / 'contrary.jsonl'}", "canary.tolerance=1e-6")
    (tmp_path / "watched").mkdir()
    report = simulate(tiny_run(material, *training, *canary), tmp_path / "watched", SilentReporter()).to_json()
    first, second = report["federation"]["rounds"]
    assert "aborted" not in first and first["canary_loss"] < second["canary_loss"]
    assert "Round 2 was thrown away: the loss on the canary rose" in (tmp_path / "watched/report.html").read_text()
    (tmp_path / "one-round").mkdir()
    simulate(tiny_run(material, *training, "federation.rounds=1"), tmp_path / "one-round", SilentReporter())
    adapters = [tmp_path / name / "adapter/adapter_model.safetensors" for name in ("watched", "one-round")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


@pytest.mark.parametrize(
    "overrides",
    [
        ("emulator.builder=uniform", "emulator.adapter_rule=ends", "adapter.kind=layers"),
        ("adapter.kind=bottleneck", "evaluation.full_fine_tuning=false"),
        ("federation.aggregation=ffa", "federation.clients_per_round=2"),
        ("federation.learning_rate=0.2", "federation.batch_size=200", "federation.optimizer=sgd"),
    ],
)
def test_other_builders_adapters_and_aggregations_run_whole(
    overrides: tuple[str, ...], material: Path, tmp_path: Path
) -> None:
    report = simulate(tiny_run(material, *overrides), tmp_path, SilentReporter())
    assert report.results.plug_in.loss < report.results.zero_shot.loss
    assert (tmp_path / "report.html").stat().st_size > 1000


def test_more_clients_than_records_are_refused_before_any_work(material: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="41"):
        simulate(tiny_run(material, "federation.clients=41"), tmp_path, SilentReporter())


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("emulator.num_adapter_layers=7", "num_adapter_layers: got 7, expected at most 6, the model's layers"),
        ("importance.candidates=500", "importance: "),
        ("importance.block_tokens=4000", "block_tokens"),
        ("model_privacy.disclosure_record={material}/train.jsonl/record", "cannot be written"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_evaluated(
    material: Path, tmp_path: Path, override: str, fault: str
) -> None:
    run, said = tiny_run(material, override.format(material=material)), io.StringIO()
    with pytest.raises((InputError, OutputError), match=fault):
        simulate(run, tmp_path, LogReporter(said))
    assert "evaluat" not in said.getvalue() and "importance" not in said.getvalue()


def test_a_failed_run_leaves_nothing(material: Path, tmp_path: Path) -> None:
    run = tiny_run(material, "emulator.num_adapter_layers=7")
    with pytest.raises(InputError), new_output(tmp_path / "runs" / "out") as directory:
        simulate(run, directory, SilentReporter())
    assert not list((tmp_path / "runs").iterdir())


def test_a_terminated_run_leaves_no_text_and_no_key(material: Path, tmp_path: Path) -> None:
    temporary, out = tmp_path / "temporary", tmp_path / "runs" / "out"
    temporary.mkdir()
    (tmp_path / "run.toml").write_text(to_toml(tiny_run(material, "federation.rounds=100000")))
    command = [Path(sys.executable).with_name("scaleot"), "simulate", tmp_path / "run.toml", "--out", out]
    process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(temporary)})
    while not list(temporary.glob("scaleot-*/data-owners/*/train.jsonl")):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert not list(temporary.glob("scaleot-*")) and not list(out.parent.iterdir())


def test_an_output_directory_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("precious")
    with pytest.raises(OutputError, match="not an empty directory"), new_output(tmp_path):
        pytest.fail("the run began")
    assert (tmp_path / "kept.txt").read_text() == "precious"


def test_an_output_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"), new_output(tmp_path / "file" / "out"):
        pytest.fail("the run began")


def test_importance_is_computed_once_and_serves_every_size(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fl_server import compress

    calls = []
    real = compress.estimate_importance

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(compress, "estimate_importance", counted)
    full = compress.load_full_model(tiny_run(material).model, SilentReporter())
    for overrides in ((), ("emulator.replaced_layer_share=0.5",), ("emulator.num_adapter_layers=1",)):
        run = tiny_run(material, *overrides)
        compress.Workbench(full, run, SilentReporter()).importance()
    assert len(calls) == 1
    changed = tiny_run(material, "importance.steps=5")
    compress.Workbench(full, changed, SilentReporter()).importance()
    assert len(calls) == 2


def test_plugging_in_leaves_the_full_model_as_it_was(finished: tuple[Path, dict[str, Any]], material: Path) -> None:
    from fl_server.reference import adapter_spec
    from scaleot_core.adapters.adapter import attach_adapter

    full = load_model(material / "model", dtype=torch.float32, device=torch.device("cpu"))
    ids = torch.tensor([[5, 6, 7]])
    before = full.model(ids).logits
    spec = adapter_spec(tiny_run(material), [1, 3])
    attached = attach_adapter(full.model, full.layout, spec)
    state = {name: tensor + 0.1 for name, tensor in attached.state().items()}
    attached.detach()
    with plugged_in(full.model, full.layout, spec, state) as tuned:
        assert not torch.allclose(tuned(ids).logits, before)
    assert torch.equal(full.model(ids).logits, before)


@pytest.mark.slow
@needs_compiler
def test_a_compiled_run_is_the_plain_one_up_to_rounding(material: Path, tmp_path: Path) -> None:
    """A minute: importance, full fine-tuning and the evaluation of five models, without the checks of shapes."""
    (tmp_path / "run.toml").write_text(to_toml(tiny_run(material, "model.dtype=float32")))
    results = []
    for compiled in ("false", "true"):
        directory, kernels = tmp_path / compiled, tmp_path / f"kernels-{compiled}"
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(kernels)}
        command = [sys.executable, "-c", "from scaleot_core.cli import main; main()", "simulate", tmp_path / "run.toml"]
        settings = ["--out", directory, "--set", f"model.compiled={compiled}"]
        subprocess.run([*command, *settings], env=environment, check=True, capture_output=True)
        assert any(kernels.rglob("*.so")) == (compiled == "true")
        results.append(json.loads((directory / "report.json").read_text())["results"])
    plain, alike = results
    assert plain.keys() == alike.keys()
    for what, figures in plain.items():
        assert alike[what]["loss"] == pytest.approx(figures["loss"], rel=1e-3), what
