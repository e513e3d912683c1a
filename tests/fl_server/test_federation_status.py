import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from fl_server.enrolment import revoke
from fl_server.federation_status import FederationStatus, read_federation_status, to_json
from fl_server.new_run import begin_run
from fl_server.owner import read_settings
from fl_server.owner_home import OwnerHome
from fl_server.round_state import Assignment, Round
from fl_server.round_store import open_round_store
from fl_server.run_status import FinishedRound
from fl_server.status_page import render, status_app
from fl_server.status_table import headline
from fl_server.training_steps import TrainingSteps
from scaleot_core.bundle.distribution import TrainingRequest
from scaleot_core.cli import VERBS_GROUP, run
from scaleot_core.progress import SilentReporter
from tests.support.deployments import Deployed

NOW = datetime.now(UTC)


@pytest.fixture
def home(deployed: Deployed, tmp_path: Path) -> Path:
    home = shutil.copytree(deployed.owner_home, tmp_path / "owner")
    (home / "superlink").mkdir(mode=0o700, exist_ok=True)
    return home


def seen(home: Path, now: datetime = NOW, **seconds_ago: float) -> None:
    stamps = {name.replace("_", "-"): (now - timedelta(seconds=ago)).timestamp() for name, ago in seconds_ago.items()}
    (home / "superlink/seen.json").write_text(json.dumps(stamps))


def status(home: Path) -> FederationStatus:
    return read_federation_status(home, now=NOW)


def test_before_the_first_start_it_says_what_to_do(home: Path) -> None:
    assert headline(status(home)) == "no run yet: start scaleot serve"
    assert status(home).waits_for == ()


def test_who_is_enrolled_online_and_revoked_is_told(home: Path) -> None:
    seen(home, data_owner_0=1.0, data_owner_1=300.0)
    revoke(OwnerHome(home), "data-owner-2", from_round=1, reason="left", now=NOW)
    found = {one.name: (one.membership, one.is_online, one.doing) for one in status(home).organisations}
    assert found == {
        "data-owner-0": ("active", True, "idle"),
        "data-owner-1": ("active", False, "away"),
        "data-owner-2": ("revoked", False, "away"),
    }


def test_a_run_that_waits_for_organisations_names_them_and_why(home: Path) -> None:
    begin_run(home, SilentReporter())
    seen(home, data_owner_0=1.0)
    found = status(home)
    assert "waiting for organisations before round 1 of 2" in headline(found)
    assert found.waits_for == ("data-owner-1: not connected", "data-owner-2: not connected")


def test_a_download_under_way_is_told_in_percent(home: Path) -> None:
    (home / "superlink/downloads.json").write_text(json.dumps({"data-owner-1": 0.25, "data-owner-2": 1.0}))
    found = {one.name: one.doing for one in status(home).organisations}
    assert found["data-owner-1"] == "fetching the emulator, 25%"
    assert found["data-owner-2"] == "away"


def ask(home: Path, *names: str) -> None:
    """Opens the first round, in which these were asked half a minute ago and nobody has answered."""
    begin_run(home, SilentReporter())
    asked = [Assignment(name, 1, "a" * 64, NOW - timedelta(seconds=30)) for name in names]
    opened = Round(1, "b" * 64, NOW, NOW + timedelta(hours=1), assignments=tuple(asked))
    with open_round_store(home / "run", read_settings(home / "run").run) as store:
        store.save(opened, clients=names)


def tell(home: Path, **steps: TrainingRequest) -> None:
    said = TrainingSteps(home / "superlink/training.json")
    for name, told in steps.items():
        said.on_training(name.replace("_", "-"), told)
    said.write()


def test_the_step_of_a_training_is_told_if_it_is_the_one_that_the_round_waits_for(home: Path) -> None:
    ask(home, "data-owner-0", "data-owner-1", "data-owner-2")
    seen(home, data_owner_0=1.0, data_owner_1=1.0, data_owner_2=1.0)
    tell(
        home,
        data_owner_0=TrainingRequest(attempt=1, round=1, step=12, steps=40),
        data_owner_1=TrainingRequest(attempt=2, round=1, step=12, steps=40),
        data_owner_2=TrainingRequest(attempt=1, round=2, step=12, steps=40),
    )
    found = status(home)
    assert [one.doing for one in found.organisations] == [
        "training, attempt 1, step 12 of 40",
        "training, attempt 1",
        "training, attempt 1",
    ]
    assert found.waits_for[:2] == (
        "data-owner-0: training for 30 s, step 12 of 40",
        "data-owner-1: training for 30 s",
    )
    assert json.loads(to_json(found))["organisations"][0]["training"] == {
        "attempt": 1,
        "round": 1,
        "step": 12,
        "steps": 40,
    }
    seen(home, datetime.now(UTC), data_owner_0=1.0)  # the page has a clock of its own
    page = TestClient(status_app(home), base_url="http://127.0.0.1").get("/").text
    assert "training, attempt 1, step 12 of 40" in page


def test_the_command_prints_one_json_document(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", str(home), "--json"], entry_points(group=VERBS_GROUP)) == 0
    document = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in document["organisations"]] == ["data-owner-0", "data-owner-1", "data-owner-2"]


def test_the_page_shows_the_same_and_takes_no_orders(home: Path) -> None:
    begin_run(home, SilentReporter())
    client = TestClient(status_app(home), base_url="http://127.0.0.1")
    page = client.get("/")
    assert page.status_code == 200
    assert "data-owner-0" in page.text
    assert "not connected" in page.text
    assert "<script" not in page.text
    assert client.get("/status.json").json()["run"]["rounds"] == 2
    assert client.get("/report").status_code == 404
    assert client.post("/").status_code == 405


def test_the_page_plots_the_rounds_the_canary_and_what_the_plug_in_is_worth(home: Path) -> None:
    begin_run(home, SilentReporter())
    found = status(home)
    assert found.run is not None
    rounds = tuple(
        FinishedRound(number, "COMMITTED", 1 / number, 2 / number, (), {}, {}, seconds=1.0) for number in (1, 2)
    )
    figures = {"loss": 1.0, "examples": 20, "accuracy": 0.5}
    results = {"zero_shot": figures, "plug_in": {**figures, "loss": None}, "full_fine_tuning": None}
    watched = replace(found, run=replace(found.run, history=rounds), results=results)
    page = render(watched, has_report=True)
    assert page.count("<svg") == 3
    assert "on the canary" in page and "<h2>Plug-in</h2>" in page and 'href="/report"' in page
    unwatched = tuple(replace(one, canary_loss=None) for one in rounds)
    page = render(replace(watched, run=replace(found.run, history=unwatched), results=None), has_report=False)
    assert page.count("<svg") == 1 and "canary" not in page


def test_a_home_that_cannot_be_believed_is_said_on_the_page(home: Path) -> None:
    path = home / "organisations.jsonl"
    path.write_bytes(path.read_bytes().replace(b"data-owner-1", b"data-owner-9"))
    answer = TestClient(status_app(home), base_url="http://127.0.0.1").get("/")
    assert answer.status_code == 500
    assert "organisations.jsonl" in answer.text
