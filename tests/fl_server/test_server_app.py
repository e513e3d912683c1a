from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from fl_server.owner import read_rounds
from fl_server.server_app import OWNER_VARIABLE, app, owner_directory
from scaleot_core.errors import InputError
from tests.support.grids import set_stage


def context(**node_config: str) -> Context:
    return Context(1, 1, dict(node_config), RecordDict(), {})


def test_the_directory_comes_from_the_node_or_else_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWNER_VARIABLE, "/srv/from-environment")
    assert owner_directory(context(owner="/srv/from-node")) == Path("/srv/from-node")
    assert owner_directory(context()) == Path("/srv/from-environment")


def test_a_server_that_is_told_no_directory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OWNER_VARIABLE, raising=False)
    with pytest.raises(InputError, match=OWNER_VARIABLE):
        owner_directory(context())


def test_a_directory_in_the_runs_own_configuration_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OWNER_VARIABLE, raising=False)
    with pytest.raises(InputError):
        owner_directory(Context(1, 1, {}, RecordDict(), {"owner": "/srv/from-the-wire"}))


def test_the_app_runs_the_rounds_and_logs_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app(set_stage(tmp_path, rounds=2).grid, context(owner=str(tmp_path)))
    assert len(read_rounds(tmp_path)) == 2
    captured = capsys.readouterr()
    assert "rounds: 6/6" in captured.err
    assert captured.out == ""
