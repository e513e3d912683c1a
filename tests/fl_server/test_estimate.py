"""What ``scaleot estimate`` learns is what the next run takes."""

import io
import json
from pathlib import Path

import pytest
import torch

from fl_server.compress import Workbench, importance_cache, load_full_model
from scaleot_core.config import to_toml
from scaleot_core.progress import LogReporter, SilentReporter
from tests.support.compilers import needs_compiler
from tests.support.tiny_task import tiny_run, write_task
from tests.support.verbs import scaleot


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_task(tmp_path_factory.mktemp("task"))
    (root / "run.toml").write_text(to_toml(tiny_run(root)))
    return root


def test_a_run_finds_what_was_estimated_and_of_another_type_learns_its_own(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SCALEOT_CACHE", str(tmp_path / "cache"))
    assert scaleot("estimate", task / "run.toml") == 0
    place = Path(capfd.readouterr().out.strip())

    def importance(dtype: str) -> tuple[float, ...]:
        run = tiny_run(task, f"model.dtype={dtype}")
        full = load_full_model(run.model, SilentReporter())
        scores = Workbench(full, run, SilentReporter()).importance().scores
        assert (importance_cache(full, run.model) / place.name).is_dir()
        return scores

    in_bfloat16 = importance("bfloat16")
    with monkeypatch.context() as patch:
        patch.setattr("fl_server.compress.estimate_importance", lambda *_, **__: pytest.fail("it is learnt again"))
        in_float32 = importance("float32")
    assert in_bfloat16 != in_float32
    assert len(list((tmp_path / "cache" / "importance").glob(f"*/{place.name}"))) == 2


@pytest.mark.slow
@needs_compiler
def test_a_compiled_estimate_is_the_plain_one_up_to_rounding_and_kept_apart(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALEOT_CACHE", str(tmp_path / "cache"))
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    scores = {}
    for compiled in ("false", "true"):
        run = tiny_run(task, "model.dtype=float32", f"model.compiled={compiled}")
        full = load_full_model(run.model, SilentReporter())
        scores[compiled] = Workbench(full, run, SilentReporter()).importance().scores
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    assert scores["true"] == pytest.approx(scores["false"], abs=1e-3)
    folders = sorted(path.name for path in (tmp_path / "cache" / "importance").iterdir())
    assert folders == ["cpu-float32", "cpu-float32-compiled"]


def test_another_folder_gets_the_report_if_it_is_asked_to(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SCALEOT_CACHE", str(tmp_path / "cache"))
    assert scaleot("estimate", task / "run.toml", "--out", tmp_path / "reports") == 0
    place = Path(capfd.readouterr().out.strip())
    assert place.parent == tmp_path / "reports" and (place / "importance.json").is_file()
    assert not (tmp_path / "cache" / "importance").exists()
    (tmp_path / "file").write_text("")
    assert scaleot("estimate", task / "run.toml", "--out", tmp_path / "file") == 2
    assert "give --out another one" in capfd.readouterr().err


@pytest.mark.parametrize("content", ["{", '{"scores": []}'], ids=["damaged", "of-another-version"])
def test_a_report_that_cannot_be_read_is_made_again_and_the_run_says_so(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], content: str
) -> None:
    monkeypatch.setenv("SCALEOT_CACHE", str(tmp_path / "cache"))
    assert scaleot("estimate", task / "run.toml") == 0
    scores = Path(capfd.readouterr().out.strip()) / "importance.json"
    whole = scores.read_bytes()
    scores.write_text(content)
    run, log = tiny_run(task), io.StringIO()
    full = load_full_model(run.model, SilentReporter())
    assert Workbench(full, run, LogReporter(log)).importance().scores == tuple(json.loads(whole)["scores"])
    said = f"the importance report in {scores.parent} is damaged or of another version: it is made again"
    assert said in log.getvalue()
    log.truncate(0)
    Workbench(full, run, LogReporter(log)).importance()
    assert "made again" not in log.getvalue()
