"""Every bad input of a run, as the user meets it: one clear error, the right exit code, nothing left behind."""

import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from scaleot_core.cli import VERBS_GROUP, run
from tests.support.tiny_models import save_tiny_model

ROW = {"context": "the film is good\nAnswer:", "choices": ["negative", "positive"], "label": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def place(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything a good run needs."""
    monkeypatch.setenv("SCALEOT_CACHE", str(tmp_path / "cache"))
    shutil.copytree(model, tmp_path / "model")
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text((json.dumps(ROW) + "\n") * 12)
    (tmp_path / "public.txt").write_text("the film is good and the story is true. " * 60)
    (tmp_path / "run.toml").write_text(
        '[model]\nsource = "model"\ndtype = "float32"\ndevice = "cpu"\n'
        '[importance]\ntext = "public.txt"\nsteps = 2\nharmonizer_rank = 2\nblock_tokens = 16\n'
        "[emulator]\nnum_adapter_layers = 2\n"
        '[data]\ntrain = "train.jsonl"\ntest = "test.jsonl"\n'
        "[federation]\nclients = 2\nrounds = 1\nlocal_steps = 1\n"
        "[evaluation]\nexamples = 4\nfull_fine_tuning = false\n"
        "[model_privacy]\nstrong_emulator_steps = 2\nhealing_steps = [0, 1]\n"
    )
    return tmp_path


def simulate(place: Path, *options: str) -> int:
    verbs = importlib.metadata.entry_points(group=VERBS_GROUP)
    return run(["simulate", str(place / "run.toml"), "--out", str(place / "out"), *options], verbs)


def rewrite(name: str, content: bytes | str) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda place: (place / name).write_bytes(data) and None


def append(name: str, line: str) -> Callable[[Path], None]:
    return lambda place: (place / name).write_text((place / name).read_text() + line) and None


def remove(name: str) -> Callable[[Path], None]:
    return lambda place: (place / name).unlink()


def pickle_only(place: Path) -> None:
    (place / "model" / "model.safetensors").rename(place / "model" / "pytorch_model.bin")


def nothing(_: Path) -> None:
    pass


CASES: dict[str, tuple[Callable[[Path], None], tuple[str, ...], tuple[str, ...]]] = {
    "unknown key": (append("run.toml", "\n[modell]\nx = 1\n"), (), ("modell",)),
    "wrong types, all at once": (
        nothing,
        ("--set", "federation.clients='many'", "--set", "emulator.removed_rank_share=2.0"),
        ("federation.clients", "emulator.removed_rank_share"),
    ),
    "model without weights": (remove("model/model.safetensors"), (), ("has no weights", "*.safetensors")),
    "pickled weights only": (pickle_only, (), ("pickled weights only", "pytorch_model.bin")),
    "no model there": (remove("model/config.json"), (), ("config.json",)),
    "empty data file": (rewrite("train.jsonl", ""), (), ("train.jsonl",)),
    "malformed line": (append("train.jsonl", "{oops\n"), (), ("train.jsonl", "line 13")),
    "not UTF-8": (rewrite("test.jsonl", b"\xff\xfe\n"), (), ("test.jsonl", "line 1")),
    "label out of range": (append("test.jsonl", json.dumps({**ROW, "label": 2}) + "\n"), (), ("line 13", "label")),
    "more clients than records": (nothing, ("--set", "federation.clients=13"), ("13", "12")),
    "more adapter layers than layers": (nothing, ("--set", "emulator.num_adapter_layers=7"), ("at most 6", "got 7")),
    "too little public text": (rewrite("public.txt", "the film"), (), ("text",)),
    "public text not UTF-8": (rewrite("public.txt", b"\xff\xfe"), (), ("public.txt", "UTF-8")),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_gives_one_clear_error_and_leaves_nothing(
    case: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, options, expected = CASES[case]
    spoil(place)
    before = {path.name for path in place.iterdir()} | {"cache"}
    status = simulate(place, *options)
    output, errors = capfd.readouterr()
    assert status == 2
    assert output == ""
    assert sum("error: " in line for line in errors.splitlines()) == 1
    assert "Traceback" not in errors
    for words in expected:
        assert words in errors
    assert {path.name for path in place.iterdir()} <= before


def test_the_same_place_unspoilt_runs(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert simulate(place, "--json") == 0
    output, errors = capfd.readouterr()
    assert json.loads(output)["results"]["plug_in"]["examples"] == 4
    assert "importance" in errors
    assert (place / "out" / "report.html").exists()


def test_an_unwritable_output_is_refused_before_any_work(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (place / "out").write_text("a file of the user's")
    assert simulate(place) == 2
    errors = capfd.readouterr().err
    assert "not an empty directory" in errors
    assert "importance" not in errors
    assert (place / "out").read_text() == "a file of the user's"


def test_a_round_that_fails_says_why_in_the_clients_own_words(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path.name for path in place.iterdir()} | {"cache"}
    assert simulate(place, "--set", "federation.learning_rate=1e30", "--set", "federation.local_steps=3") == 1
    errors = capfd.readouterr().err
    assert "data-owner-1: E_CLIENT, expected an update, got a refusal: training.diverged" in errors
    assert errors.count("the log of client") == 1  # both failed alike
    assert errors.rstrip().endswith("expected finite values, got NaN or infinity")
    assert {path.name for path in place.iterdir()} <= before
