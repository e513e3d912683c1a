"""The training step on its way: the trainer's file, and the agent's word over real gRPC with mutual TLS."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from fl_clients import agent, training_step
from fl_clients.grpc_source import grpc_source
from fl_clients.membership import Membership
from fl_clients.policy import read_data_owner_file
from fl_clients.session import EmulatorShelf, take_part
from fl_clients.training_step import STEP_FILE, StepReporter, read_step, tell_steps
from fl_server.distribution import serve_bundles
from scaleot_core.address import Address
from scaleot_core.bundle.canonical import canonical_json
from scaleot_core.bundle.distribution import SERVICE, TRAINING_METHOD, TrainingRequest
from scaleot_core.federation.messages import Instructions, decode_statement
from scaleot_core.federation.signing import claimed
from tests.support.bundles import CLINIC
from tests.support.distribution_server import index_of
from tests.support.federations import Federation, build_federation, rewrite_data_owner
from tests.support.fetching import Parties, parties
from tests.support.private_updates import instructions, private_federation

NOW = datetime.now(UTC)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return build_federation(tmp_path, clients=1)


@pytest.fixture
def home(federation: Federation) -> Path:
    home = federation.data_owner_directories[0]
    (home / STEP_FILE).parent.mkdir()
    return home


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Parties:
    return parties(tmp_path_factory.mktemp("steps"))


def step(number: int) -> TrainingRequest:
    return TrainingRequest(attempt=1, round=1, step=number, steps=3)


@pytest.mark.parametrize("mechanism", ["none", "dp-sgd", "dpzero"])
def test_training_leaves_each_step_and_no_loss_and_removes_the_file_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mechanism: str
) -> None:
    federation = build_federation(tmp_path) if mechanism == "none" else private_federation(tmp_path, mechanism)
    home = federation.data_owner_directories[0]
    (home / STEP_FILE).parent.mkdir()
    written: list[bytes] = []
    replace: Callable[..., None] = training_step.replace_file

    def watched(path: Path, data: bytes, *, mode: int) -> None:
        replace(path, data, mode=mode)
        written.append(path.read_bytes())

    monkeypatch.setattr(training_step, "replace_file", watched)
    monkeypatch.setattr(training_step, "STEP_SECONDS", 0.0)
    take_part(home, instructions(federation, local_steps=3), EmulatorShelf(), now=NOW)
    assert [json.loads(data) for data in written] == [
        {"attempt": 1, "round": 1, "step": number, "steps": 3} for number in (0, 1, 2, 3)
    ]
    assert read_step(home) is None


def test_training_that_no_agent_watches_leaves_nothing_and_goes_on(federation: Federation) -> None:
    home = federation.data_owner_directories[0]
    take_part(home, instructions(federation), EmulatorShelf(), now=NOW)
    assert not (home / STEP_FILE).parent.exists()


def test_steps_are_written_at_most_once_in_five_seconds(home: Path, federation: Federation) -> None:
    asked = decode_statement(claimed(instructions(federation).statement), Instructions)
    with StepReporter(home, asked).stage("training", steps=1_000) as stage:
        for _ in range(1_000):
            stage.advance(loss=1.0)
        assert read_step(home) == TrainingRequest(attempt=1, round=1, step=0, steps=1_000)


def test_a_damaged_file_is_no_step(home: Path) -> None:
    for content in (b"", b"{}", b'{"attempt":1,"loss":1,"round":1,"step":1,"steps":2}', b"x" * 10_000):
        (home / STEP_FILE).write_bytes(content)
        assert read_step(home) is None


def test_the_agent_tells_each_new_step_once_and_the_server_knows_whose_it_is(
    two: Parties, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_step, "STEP_SECONDS", 0.05)
    heard: list[tuple[str, TrainingRequest]] = []
    index = index_of(two.scene.path)
    with (
        serve_bundles(
            lambda: index,
            "127.0.0.1:0",
            tls=two.server,
            is_allowed=lambda name: name == CLINIC,
            on_training=lambda name, told: heard.append((name, told)),
        ) as port,
        grpc_source(f"127.0.0.1:{port}", two.clinic) as source,
    ):
        told = None
        for number in (1, 1, 2):
            (home / STEP_FILE).write_bytes(canonical_json(step(number).model_dump()))
            told = tell_steps(source, home, seconds=0.5, told=told)
        (home / STEP_FILE).unlink()
        assert tell_steps(source, home, seconds=0.2, told=told) == step(2)
    assert heard == [(CLINIC, step(1)), (CLINIC, step(2))]


@pytest.mark.parametrize(("line", "heard_steps"), [("", 0), ("tells_steps = true\n", 1)])
def test_under_a_mechanism_the_agent_tells_no_step_unless_its_owner_says_so(
    two: Parties, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, heard_steps: int
) -> None:
    home = private_federation(tmp_path, "dp-sgd", clients=1).data_owner_directories[0]
    rewrite_data_owner(home, "device =", f"{line}device =")
    (home / STEP_FILE).parent.mkdir()
    (home / STEP_FILE).write_bytes(canonical_json(step(1).model_dump()))
    monkeypatch.setattr(training_step, "STEP_SECONDS", 0.05)
    monkeypatch.setattr(agent, "LOOK_SECONDS", 0.5)
    heard: list[TrainingRequest] = []
    index = index_of(two.scene.path)
    with serve_bundles(
        lambda: index,
        "127.0.0.1:0",
        tls=two.server,
        is_allowed=lambda _: True,
        on_training=lambda _, told: heard.append(told),
    ) as port:
        address = Address("127.0.0.1", port)
        membership = Membership(home, read_data_owner_file(home), address, address, two.clinic)
        agent.wait_for_next_look(membership, None)
    assert heard == [step(1)] * heard_steps


def test_a_server_that_is_away_or_refuses_costs_nothing_but_the_report(
    two: Parties, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_step, "STEP_SECONDS", 0.05)
    (home / STEP_FILE).write_bytes(canonical_json(step(1).model_dump()))
    index = index_of(two.scene.path)
    with serve_bundles(lambda: index, "127.0.0.1:0", tls=two.server, is_allowed=lambda _: False) as port:
        address = f"127.0.0.1:{port}"
        with grpc_source(address, two.clinic) as source:
            assert tell_steps(source, home, seconds=0.5, told=None) is None
    with grpc_source(address, two.clinic) as source:
        assert tell_steps(source, home, seconds=0.5, told=None) is None


@pytest.mark.parametrize(
    "change", [{"loss": 1.0}, {"step": 4}, {"step": -1}, {"step": 1.5}, {"round": 0}, {"attempt": "1"}, {"steps": True}]
)
def test_the_server_takes_nothing_but_four_numbers_in_range(two: Parties, change: dict[str, object]) -> None:
    index = index_of(two.scene.path)
    heard: list[object] = []
    parts = (path.read_bytes() for path in (two.clinic.authority, two.clinic.private_key, two.clinic.certificate))
    with (
        serve_bundles(
            lambda: index,
            "127.0.0.1:0",
            tls=two.server,
            is_allowed=lambda _: True,
            on_training=lambda *told: heard.append(told),
        ) as port,
        grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(*parts)) as channel,
    ):
        ask = channel.unary_stream(f"/{SERVICE}/{TRAINING_METHOD}")
        assert list(ask(canonical_json(step(3).model_dump()), timeout=10)) == []
        with pytest.raises(grpc.RpcError) as raised:
            list(ask(canonical_json({**step(3).model_dump(), **change}), timeout=10))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(heard) == 1
