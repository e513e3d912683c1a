import stat
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fl_clients.client_app import DATA_OWNERS_VARIABLE, app, data_owner_directory
from fl_clients.refusal import FAILURE_LOG
from fl_server.grid import InProcessGrid
from fl_server.wire import from_records, to_records
from scaleot_core.bundle import generate_signing_key
from scaleot_core.errors import InputError
from scaleot_core.federation.messages import (
    UNREAD_NONCE,
    IntroductionRequest,
    Payload,
    Refusal,
    decode_statement,
)
from scaleot_core.federation.signing import claimed, sign
from tests.support.federations import build_federation
from tests.support.private_updates import instructions, private_federation

PRIVATE = "patient Meier, born 1961"
ASKED = Payload(sign(IntroductionRequest(run="run-1", nonce="a" * 64), generate_signing_key()))


def context(**node_config: str | int) -> Context:
    return Context(1, 2, dict(node_config), RecordDict(), {})


def ask(directory: Path, content: RecordDict, message_type: str = "query.introduce") -> Message:
    grid = InProcessGrid(app, [{"data-owner": str(directory)}])
    (reply,) = grid.send_and_receive([Message(content, next(iter(grid.get_node_ids())), message_type)])
    return reply


def refusal_of(reply: Message) -> Refusal:
    return decode_statement(from_records(reply.content).statement, Refusal)


def test_the_directory_comes_from_the_nodes_own_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_OWNERS_VARIABLE, "/srv/owners")
    assert data_owner_directory(context(**{"data-owner": "/srv/a", "partition-id": 3})) == Path("/srv/a")
    assert data_owner_directory(context(**{"partition-id": 3})) == Path("/srv/owners/3")


@pytest.mark.parametrize("node_config", [{}, {"partition-id": "../../etc"}])
def test_a_client_that_is_told_no_directory_takes_no_other(
    monkeypatch: pytest.MonkeyPatch, node_config: dict[str, str]
) -> None:
    monkeypatch.setenv(DATA_OWNERS_VARIABLE, "/srv/owners")
    with pytest.raises(InputError, match="data-owner"):
        data_owner_directory(context(**node_config))


def test_a_directory_in_the_runs_own_configuration_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_OWNERS_VARIABLE, raising=False)
    with pytest.raises(InputError):
        data_owner_directory(Context(1, 2, {}, RecordDict(), {"data-owner": "/srv/from-the-wire"}))


def test_a_failure_leaves_the_house_as_a_code_and_stays_in_it_as_a_text(tmp_path: Path) -> None:
    (tmp_path / "data-owner.toml").write_text(f'organisation = ["{PRIVATE}"]', encoding="utf-8")
    reply = ask(tmp_path, to_records(ASKED))
    assert refusal_of(reply) == Refusal(nonce="a" * 64, code="own_files")
    assert PRIVATE not in str(reply)
    log = tmp_path / FAILURE_LOG
    assert "RunFileError" in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_an_unforeseen_failure_leaves_as_a_code_too(tmp_path: Path) -> None:
    own = tmp_path / PRIVATE
    own.mkdir()
    (own / "data-owner.toml").mkdir()  # not a file: whatever that raises inside
    reply = ask(own, to_records(ASKED))
    assert refusal_of(reply).nonce == "a" * 64
    assert PRIVATE not in str(reply)


def test_a_missing_directory_is_a_code_and_nothing_is_made_there(tmp_path: Path) -> None:
    assert refusal_of(ask(tmp_path / "absent", to_records(ASKED))).code == "own_files"
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"statement": ConfigRecord({"bytes": b"\xff"})}),
        RecordDict({"statement": ConfigRecord({"bytes": b'{"nonce": 5}'})}),
    ],
)
@pytest.mark.parametrize("message_type", ["query.introduce", "train"])
def test_malformed_requests_are_refused_with_a_code(tmp_path: Path, content: RecordDict, message_type: str) -> None:
    assert refusal_of(ask(tmp_path, content, message_type)) == Refusal(
        nonce=UNREAD_NONCE, code="instructions.malformed"
    )


def test_importing_the_apps_imports_no_torch() -> None:
    code = "import fl_clients.client_app, fl_server.server_app, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("mechanism", "code"), [("dp-sgd", "withheld"), (None, "data")])
def test_a_record_that_cannot_be_read_is_told_apart_only_where_nothing_is_hidden(
    tmp_path: Path, mechanism: str | None, code: str
) -> None:
    federation = (
        build_federation(tmp_path, clients=1)
        if mechanism is None
        else private_federation(tmp_path, mechanism, clients=1)
    )
    (directory,) = federation.data_owner_directories
    (directory / "train.jsonl.gz").write_bytes(b"{")
    reply = ask(directory, to_records(instructions(federation)), "train")
    assert decode_statement(claimed(from_records(reply.content).statement), Refusal).code == code
    assert "DataError" in (directory / FAILURE_LOG).read_text()


def test_who_only_introduces_a_data_owner_or_refuses_loads_no_torch() -> None:
    code = "import fl_clients.introduction, fl_clients.refusal, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
