from pathlib import Path

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fl_server.exchange import Exchange
from fl_server.grid import InProcessGrid
from fl_server.membership import MembersFile
from fl_server.roster import Roster
from fl_server.run_key import RunVoice
from fl_server.wire import from_records, to_records
from scaleot_core.bundle import SigningKey, generate_signing_key
from scaleot_core.errors import Reason
from scaleot_core.federation.messages import Introduction, IntroductionRequest, Payload, Refusal, decode_statement
from scaleot_core.federation.signing import claimed, sign
from tests.support.grids import Clock, key_of, owner_key, stepping_client_app

VOICE = RunVoice(owner_key(), b"certificate")
MEMBERS = MembersFile(verifying_keys={name: key_of(name).public for name in ("a", "b")}, max_claimed_examples=100)


def exchange_of(app: ClientApp, names: list[str]) -> Exchange:
    clock = Clock()
    grid = InProcessGrid(app, [{"name": name, "step": "1", "examples": "1"} for name in names])
    return Exchange(grid, clock=clock, sleep=clock.sleep)


def roster_of(exchange: Exchange) -> Roster:
    return Roster(exchange, VOICE, MEMBERS, "run-1")


def counting_app(asked: list[str], *, key: SigningKey | None = None, **lies: str) -> ClientApp:
    app = ClientApp()

    @app.query("introduce")
    def introduce(message: Message, context: Context) -> Message:
        request = decode_statement(claimed(from_records(message.content).statement), IntroductionRequest)
        name = str(context.node_config["name"])
        asked.append(name)
        answer = {"run": request.run, "nonce": request.nonce, "client": name, **lies}
        return Message(to_records(Payload(sign(Introduction(**answer), key or key_of(name)))), reply_to=message)

    return app


def test_every_node_is_known_by_the_name_that_its_organisation_has_signed() -> None:
    exchange = exchange_of(stepping_client_app(), ["b", "a"])
    roster = roster_of(exchange)
    assert roster.begin_round(1, deadline=10.0) == ()
    first, second = exchange.connected_nodes()
    assert roster.idle_clients() == ("a", "b")
    assert (roster.node_of("b"), roster.node_of("a"), roster.node_of("c")) == (first, second, None)


def test_a_node_is_asked_once() -> None:
    asked: list[str] = []
    roster = roster_of(exchange_of(counting_app(asked), ["a", "b"]))
    roster.begin_round(1, deadline=10.0)
    roster.look(1, deadline=10.0)
    roster.begin_round(2, deadline=10.0)
    assert asked == ["a", "b"]


def test_a_name_that_two_nodes_claim_with_its_key_belongs_to_neither() -> None:
    roster = roster_of(exchange_of(stepping_client_app(), ["a", "b", "a"]))
    (turned_away,) = roster.begin_round(1, deadline=10.0)
    assert (turned_away.client, turned_away.reason) == ("a", Reason.BINDING)
    assert roster.idle_clients() == ("b",) and roster.node_of("a") is None


@pytest.mark.parametrize("lie", [{"run": "run-2"}, {"nonce": "f" * 64}])
def test_an_introduction_for_another_run_or_request_is_refused(lie: dict[str, str]) -> None:
    roster = roster_of(exchange_of(counting_app([], **lie), ["a"]))
    (turned_away,) = roster.begin_round(1, deadline=10.0)
    assert turned_away.reason is Reason.BINDING
    assert roster.idle_clients() == ()


@pytest.mark.parametrize(("name", "key"), [("a", generate_signing_key()), ("nobody", None)])
def test_who_is_not_enrolled_or_has_not_the_key_is_turned_away(name: str, key: SigningKey | None) -> None:
    roster = roster_of(exchange_of(counting_app([], key=key), [name]))
    (turned_away,) = roster.begin_round(1, deadline=10.0)
    assert turned_away.reason is Reason.SIGNATURE
    assert roster.idle_clients() == ()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"{}", Reason.FORMAT),
        (sign(Refusal(nonce="a" * 64, code="own_files"), key_of("a")), Reason.ERROR),
        (b'{"code":"own_files","nonce":"' + b"a" * 64 + b'","type":"scaleot.refusal/1"}', Reason.SIGNATURE),
    ],
)
def test_an_introduction_that_is_none_is_refused(said: bytes, reason: Reason) -> None:
    app = ClientApp()

    @app.query("introduce")
    def introduce(message: Message, context: Context) -> Message:
        return Message(to_records(Payload(said)), reply_to=message)

    (turned_away,) = roster_of(exchange_of(app, ["a"])).begin_round(1, deadline=10.0)
    assert turned_away.reason is reason


def test_a_node_that_left_is_forgotten(tmp_path: Path) -> None:
    exchange = exchange_of(stepping_client_app(), ["a", "b"])
    roster = roster_of(exchange)
    roster.begin_round(1, deadline=10.0)
    grid = exchange._grid
    assert isinstance(grid, InProcessGrid)
    del grid._contexts[exchange.connected_nodes()[0]]
    roster.look(1, deadline=10.0)
    assert roster.idle_clients() == ("b",)
