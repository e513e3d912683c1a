import json
import os
import resource
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from scaleot_core.cli import run
from scaleot_core.config import read_run_file
from scaleot_core.errors import AssetError, DataError, VerificationError
from scaleot_core.run_file import RunFile

SCALEOT = Path(sys.executable).with_name("scaleot")


def succeeds() -> None:
    sys.stdout.write("a result\n")


def fails() -> None:
    raise AssetError("the asset is not there")


def gets_bad_input() -> None:
    raise DataError("train.jsonl, line 3: no text")


def meets_a_forged_bundle() -> None:
    raise VerificationError("bundle.signature", "the signature is another's")


def has_a_bug() -> None:
    raise KeyError("unforeseen")


def is_interrupted() -> None:
    raise KeyboardInterrupt


VERBS = [
    EntryPoint(verb.__name__.replace("_", "-"), f"{__name__}:{verb.__name__}", "scaleot.verbs")
    for verb in (succeeds, fails, gets_bad_input, meets_a_forged_bundle, has_a_bug, is_interrupted)
]
CHECK = [EntryPoint("check", "scaleot_core.commands:check", "scaleot.verbs")]


@pytest.mark.parametrize(
    ("verb", "status", "message"),
    [
        ("fails", 1, "error: the asset is not there\n"),
        ("gets-bad-input", 2, "error: train.jsonl, line 3: no text\n"),
        ("meets-a-forged-bundle", 3, "error: the signature is another's [bundle.signature]\n"),
        ("is-interrupted", 130, "interrupted"),
        ("no-such-verb", 2, "No such command 'no-such-verb'"),
    ],
)
def test_an_error_is_a_message_on_standard_error_and_its_exit_code(
    verb: str, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([verb], VERBS) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_the_unforeseen_becomes_a_bug_report_with_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["has-a-bug"], VERBS) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "a bug. Please report" in captured.err
    assert "KeyError: 'unforeseen'" in captured.err
    assert "in has_a_bug" in captured.err


def test_a_result_goes_to_standard_output_and_success_is_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["succeeds"], VERBS) == 0
    assert capsys.readouterr() == ("a result\n", "")


def test_nothing_asked_shows_the_verbs_and_is_a_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([], VERBS) == 2
    captured = capsys.readouterr()
    assert "gets-bad-input" in captured.out + captured.err


def test_check_prints_the_run_file_as_it_is_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[federation]\nclients = 6\n")
    assert run(["check", str(path), "--set", "federation.rounds=2"], CHECK) == 0
    printed = capsys.readouterr().out
    resolved = tmp_path / "resolved.toml"
    resolved.write_text(printed)
    assert read_run_file(resolved, []) == read_run_file(path, ["federation.rounds=2"])
    assert read_run_file(resolved, []).federation.rounds == 2


def test_check_prints_one_json_document_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text("")
    assert run(["check", str(path), "--json"], CHECK) == 0
    assert json.loads(capsys.readouterr().out) == RunFile().model_dump()


def test_check_reports_every_fault_and_wrong_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text("seed = -1\n[federation]\nclient = 6\n")
    assert run(["check", str(path)], CHECK) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{path} has 2 faults:" in captured.err
    assert "did you mean federation.clients?" in captured.err


def test_the_installed_command_answers_help_in_half_a_second_of_a_processor() -> None:
    def processor_seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = processor_seconds()  # and not the clock: other work may share the cores
    shown = subprocess.run([SCALEOT, "--help"], capture_output=True, text=True, check=True)
    assert processor_seconds() - before < 0.5
    assert "check" in shown.stdout and "simulate" in shown.stdout


def test_the_installed_command_tells_its_version_and_passes_on_the_exit_code(tmp_path: Path) -> None:
    version = subprocess.run([SCALEOT, "--version"], capture_output=True, text=True, check=True).stdout
    assert version.startswith("scaleot ")
    missing = subprocess.run([SCALEOT, "check", tmp_path / "none.toml"], capture_output=True, text=True, check=False)
    assert (missing.returncode, missing.stdout) == (2, "")


def test_the_command_keeps_libraries_from_the_network() -> None:
    program = (
        "import os, sys; from scaleot_core.cli import main; sys.argv = ['scaleot', '--version']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(os.environ['HF_HUB_OFFLINE'], os.environ['TRANSFORMERS_OFFLINE'], os.environ['FLWR_TELEMETRY_ENABLED'])"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "FLWR_TELEMETRY_ENABLED": "1"}
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert shown.stdout.splitlines()[-1] == "1 1 0"
