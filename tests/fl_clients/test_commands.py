"""The data owner's verbs, as they are typed."""

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from fl_clients import own_ledger
from fl_clients.own_ledger import ledger_terms
from fl_clients.policy import OwnPrivacy
from scaleot_core.cli import run
from scaleot_core.privacy.accountant import epsilon_of
from scaleot_core.privacy.ledger import open_ledger
from scaleot_core.privacy.ledger_file import read_chain
from scaleot_core.privacy.ledger_lines import LedgerChain
from scaleot_core.training.data import read_records
from tests.support.federations import sentences
from tests.support.ledgers import NOW, gaussian

BUDGET = [EntryPoint("budget", "fl_clients.commands:budget", "scaleot.verbs")]
EVENT = gaussian(5.0, 3)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A data owner with a budget, records and a mirror, and no ledger yet."""
    (tmp_path / "mirror").mkdir()
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(0, 9)))
    (tmp_path / "data-owner.toml").write_text(
        'organisation = "clinic"\ndata = "train.jsonl"\nbundle = "b"\ngrant = "g"\nidentity_key = "i"\n'
        'owner_public_key = "o"\n[privacy]\nepsilon = 4.0\ndelta = 1e-3\nmechanisms = ["dp-sgd"]\n'
        'declared_records = 9\nledger_mirror = "mirror"\n'
    )
    return tmp_path


def budget(directory: Path, *options: str) -> int:
    return run(["budget", str(directory), *options], BUDGET)


def release_rounds(directory: Path, count: int, *, commits: int) -> None:
    privacy = OwnPrivacy(epsilon=4.0, delta=1e-3, mechanisms=["dp-sgd"], declared_records=9)
    terms = ledger_terms(privacy, read_records(directory / "train.jsonl"))
    place, mirror = directory / "ledger", directory / "mirror"
    with open_ledger(place, terms, epsilon_of=epsilon_of, now=NOW, mirror=mirror) as ledger:
        for number in range(1, count + 1):
            reservation = ledger.reserve("run-7", number, (EVENT,), "dp-sgd update", now=NOW)
            if number <= commits:
                ledger.commit(reservation, b"update", now=NOW)


def test_a_new_ledger_shows_a_whole_budget(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert budget(directory, "--create", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["budget_epsilon"], summary["spent_epsilon"], summary["left_epsilon"]) == (4.0, 0.0, 4.0)
    assert (summary["rounds_that_fit"], summary["releases"]) == (None, [])
    assert summary["terms"]["data_set"]["records"] == 9


def test_a_budget_that_the_file_has_changed_is_the_one_that_is_shown(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget(directory, "--create")
    path = directory / "data-owner.toml"
    path.write_text(path.read_text().replace("epsilon = 4.0", "epsilon = 2.0"))
    capsys.readouterr()
    assert budget(directory, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["budget_epsilon"], summary["left_epsilon"]) == (2.0, 2.0)


def test_spent_left_the_rounds_that_fit_and_each_release_are_shown(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget(directory, "--create")
    release_rounds(directory, 2, commits=1)
    capsys.readouterr()
    assert budget(directory, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    spent = epsilon_of((EVENT.times(2),), 1e-3)
    assert summary["spent_epsilon"] == spent and summary["left_epsilon"] == 4.0 - spent
    assert [release["status"] for release in summary["releases"]] == ["committed", "reserved"]
    fitting = summary["rounds_that_fit"]
    assert epsilon_of((EVENT.times(2 + fitting),), 1e-3) <= 4.0 < epsilon_of((EVENT.times(3 + fitting),), 1e-3)
    assert summary["head"] == read_chain(directory / "ledger").head


def test_the_table_names_unit_neighbours_sampling_and_every_release(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    budget(directory, "--create")
    release_rounds(directory, 2, commits=1)
    capsys.readouterr()
    assert budget(directory) == 0
    printed = capsys.readouterr().out
    for said in ("one training record", "add/remove", "without sampling", "0.001", "epsilon 4"):
        assert said in printed
    rows = [line.split() for line in printed.splitlines() if "run-7" in line]
    assert [row[2:6] for row in rows] == [
        ["run-7", "1", "committed", "gaussian"],
        ["run-7", "2", "reserved", "gaussian"],
    ]
    assert all(NOW.isoformat() == row[1] and row[6:] == ["5", "1", "3"] for row in rows)


@pytest.mark.parametrize(("declared", "effect"), [(4, "larger than was asked for"), (19, "smaller than was asked for")])
def test_a_declared_number_far_from_the_true_one_is_warned_of(
    directory: Path, capsys: pytest.CaptureFixture[str], declared: int, effect: str
) -> None:
    path = directory / "data-owner.toml"
    budget(directory, "--create")
    assert "declared_records" not in capsys.readouterr().err
    path.write_text(path.read_text().replace("declared_records = 9", f"declared_records = {declared}"))
    assert budget(directory, "--json") == 0
    printed = capsys.readouterr()
    assert f"declared_records = {declared}, but there are 9 records: samples are {effect}" in printed.err
    assert json.loads(printed.out)["warnings"] == [printed.err.strip()]


@pytest.mark.parametrize("is_charged_first", [True, False])
def test_a_round_that_is_charged_while_the_budget_is_shown_is_no_sign_of_an_older_ledger(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, is_charged_first: bool
) -> None:
    budget(directory, "--create")
    read = own_ledger.read_chain

    def read_beside_a_charge(place: Path) -> LedgerChain:
        before = read(place)
        release_rounds(directory, 1, commits=1)
        return read(place) if is_charged_first else before

    monkeypatch.setattr(own_ledger, "read_chain", read_beside_a_charge)
    assert budget(directory) == 0, capsys.readouterr().err


def test_a_delta_of_one_over_the_records_is_warned_of_when_the_ledger_is_made_and_after(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = directory / "data-owner.toml"
    path.write_text(path.read_text().replace("1e-3", f"{1 / 9}"))
    for options in (["--create", "--json"], ["--json"]):
        assert budget(directory, *options) == 0
        printed = capsys.readouterr()
        assert "warning: delta 0.111111 is not below one over the 9 records" in printed.err
        assert json.loads(printed.out)["warnings"] == [printed.err.strip()]


def test_a_delta_far_below_one_over_the_records_is_not_warned_of(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert budget(directory, "--create") == 0
    assert capsys.readouterr().err == ""


def test_a_ledger_is_made_once(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    budget(directory, "--create")
    (directory / "ledger").rename(directory / "elsewhere")
    assert budget(directory, "--create") == 3
    assert "holds its head" in capsys.readouterr().err
    assert not (directory / "ledger").exists()
    (directory / "elsewhere").rename(directory / "ledger")
    path = directory / "data-owner.toml"
    path.write_text(path.read_text().replace('ledger_mirror = "mirror"\n', ""))
    assert budget(directory, "--create") == 2
    assert "already: a new one would forget what was spent" in capsys.readouterr().err


def test_no_ledger_is_no_fresh_budget(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert budget(directory) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "make it once with `scaleot budget DIRECTORY --create`" in captured.err
    assert not (directory / "ledger").exists()


def test_an_older_copy_a_changed_line_and_other_records_are_not_believed(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget(directory, "--create")
    lines, head = directory / "ledger" / "ledger.jsonl", directory / "ledger" / "head.json"
    older = lines.read_bytes(), head.read_bytes()
    release_rounds(directory, 1, commits=1)
    newest = lines.read_bytes(), head.read_bytes()

    def put_back(copy: tuple[bytes, bytes]) -> None:
        lines.write_bytes(copy[0])
        head.write_bytes(copy[1])

    put_back(older)
    assert budget(directory) == 3
    put_back((newest[0].replace(b"run-7", b"run-8"), newest[1]))
    assert budget(directory) == 3
    assert "line 2" in capsys.readouterr().err
    put_back(newest)
    with (directory / "train.jsonl").open("a") as file:
        file.write('{"text": "one record more"}\n')
    assert budget(directory) == 3
    assert "another data set" in capsys.readouterr().err


def test_a_data_owner_without_a_budget_is_told_how_to_have_one(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = directory / "data-owner.toml"
    path.write_text(path.read_text().split("[privacy]")[0])
    assert budget(directory, "--create") == 2
    assert "write [privacy]" in capsys.readouterr().err
