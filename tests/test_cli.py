import importlib.metadata
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import click
import pytest
import torch
import typer

from scaleot_core.cli import GROUPS, VERBS_GROUP, _build_app, run
from scaleot_core.config import read_run_file
from scaleot_core.errors import AssetError, BudgetExhaustedError, DataError, LedgerError, VerificationError
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


def meets_a_forged_ledger() -> None:
    raise LedgerError("ledger", "it was changed", line=3)


def passes_the_budget() -> None:
    raise BudgetExhaustedError(
        spent=1.0, asked=8.0, total=8.5, budget=8.0, about="at delta 1e-05 for one record", rounds_that_fit=5
    )


def has_a_bug() -> None:
    raise KeyError("unforeseen")


def runs_out_of_memory() -> None:
    torch.empty(1 << 60)


def is_interrupted() -> None:
    raise KeyboardInterrupt


VERBS = [
    EntryPoint(verb.__name__.replace("_", "-"), f"{__name__}:{verb.__name__}", "scaleot.verbs")
    for verb in (
        succeeds,
        fails,
        gets_bad_input,
        meets_a_forged_bundle,
        meets_a_forged_ledger,
        passes_the_budget,
        has_a_bug,
        runs_out_of_memory,
        is_interrupted,
    )
]
CHECK = [EntryPoint("check", "fl_server.commands:check", "scaleot.verbs")]


@pytest.mark.parametrize(
    ("verb", "status", "message"),
    [
        ("fails", 1, "error: the asset is not there\n"),
        ("gets-bad-input", 2, "error: train.jsonl, line 3: no text\n"),
        ("meets-a-forged-bundle", 3, "error: the signature is another's [bundle.signature]\n"),
        ("meets-a-forged-ledger", 3, "error: privacy ledger ledger, line 3: it was changed\n"),
        ("passes-the-budget", 4, "Rounds of this kind that still fit: 5\n"),
        ("is-interrupted", 130, "interrupted"),
        ("runs-out-of-memory", 1, "error: there is not enough memory ("),
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


def test_a_dot_in_a_verbs_name_makes_a_group_that_verbs_of_both_sides_share(capsys: pytest.CaptureFixture[str]) -> None:
    grouped = [
        EntryPoint("org.list", f"{__name__}:succeeds", "scaleot.verbs"),
        EntryPoint("org.revoke", f"{__name__}:gets_bad_input", "scaleot.verbs"),
    ]
    assert run(["org", "list"], [*VERBS, *grouped]) == 0
    assert capsys.readouterr() == ("a result\n", "")
    assert run(["org", "revoke"], grouped) == 2
    assert "no text" in capsys.readouterr().err
    assert run(["org"], grouped) == 2
    captured = capsys.readouterr()
    assert "revoke" in captured.out + captured.err
    assert run(["list"], grouped) == 2


def test_every_group_of_the_installed_verbs_says_what_it_is_about() -> None:
    names = {
        verb.name.partition(".")[0] for verb in importlib.metadata.entry_points(group=VERBS_GROUP) if "." in verb.name
    }
    assert names == set(GROUPS)


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


def private_run_file(directory: Path) -> Path:
    records = "".join(json.dumps({"text": f"the clinic saw patient {number}"}) + "\n" for number in range(40))
    (directory / "train.jsonl").write_text(records)
    path = directory / "run.toml"
    path.write_text(
        '[data]\ntrain = "train.jsonl"\ntest = "train.jsonl"\n[federation]\nclients = 2\npartition = "iid"\n'
        '[privacy]\nmechanism = "dp-sgd"\nepsilon = 4.0\ndelta = 0.001\n'
    )
    return path


def test_check_shows_what_privacy_costs_each_data_owner_in_comments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = private_run_file(tmp_path)
    assert run(["check", str(path)], CHECK) == 0
    printed = capsys.readouterr().out
    costs = [line for line in printed.splitlines() if line.startswith("# data-owner-")]
    assert f"# what follows is of {tmp_path / 'train.jsonl'}, divided as scaleot simulate does it" in printed
    assert len(costs) == 2 and all("20 records, gaussian noise of standard deviation" in line for line in costs)
    assert all("120 releases: epsilon 4 at delta 0.001" in line or "epsilon 3.999" in line for line in costs)
    resolved = tmp_path / "resolved.toml"
    resolved.write_text(printed)
    assert read_run_file(resolved, []) == read_run_file(path, [])
    assert run(["check", str(path), "--json"], CHECK) == 0
    assert json.loads(capsys.readouterr().out)["privacy"]["epsilon"] == 4.0


def test_check_refuses_rounds_that_pass_the_budget_with_the_number_that_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = private_run_file(tmp_path)
    changes = ["--set", "privacy.noise_multiplier=2.0", "--set"]
    assert run(["check", str(path), *changes, "federation.rounds=500"], CHECK) == 4
    captured = capsys.readouterr()
    fitting = re.search(r"still fit: (\d+)", captured.err)
    assert captured.out == "" and fitting is not None
    assert 0 < int(fitting[1]) < 500
    assert run(["check", str(path), *changes, f"federation.rounds={fitting[1]}"], CHECK) == 0


def test_check_looks_at_every_point_of_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = private_run_file(tmp_path)
    file = path.read_text()
    path.write_text(
        file + '[compare.variants]\na = { "importance.shipped" = false }\nb = { "federation.client" = 1 }\n'
    )
    assert run(["check", str(path)], CHECK) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "importance.shipped" in captured.err and "federation.client" in captured.err
    path.write_text(
        file
        + '[compare]\nbuilders = ["uniform"]\nseeds = [0, 1]\n'
        + '[compare.variants]\nnone = { "privacy.mechanism" = "none" }\n'
        + 'strict = { "privacy.epsilon" = 1.0 }\n'
    )
    assert run(["check", str(path)], CHECK) == 0
    costs = [line for line in capsys.readouterr().out.splitlines() if line.startswith("# data, ")]
    assert [line.partition(": ")[0] for line in costs] == ["# data, uniform, variant strict"] * 2
    assert all("20 records" in line and re.search(r"epsilon (1|0\.999\d?) at delta", line) for line in costs)


def test_no_verb_s_help_has_a_stray_backslash() -> None:
    def helps(command: click.Command, path: str) -> Iterator[tuple[str, str]]:
        yield path, command.get_help(click.Context(command, info_name=path))
        for name, child in getattr(command, "commands", {}).items():
            yield from helps(child, f"{path} {name}")

    shown = dict(helps(typer.main.get_command(_build_app(entry_points(group=VERBS_GROUP))), "scaleot"))
    assert len(shown) > 20 and "[required]" in shown["scaleot org init"]
    assert not [path for path, text in shown.items() if "\\" in text]


def test_check_without_a_file_prints_every_key_of_the_quickstart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check"], CHECK) == 0
    (tmp_path / "quickstart.toml").write_text(capsys.readouterr().out)
    assert read_run_file(tmp_path / "quickstart.toml", []) == RunFile()


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
