from pathlib import Path

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fl_server.exchange import Exchange
from fl_server.grid import InProcessGrid
from fl_server.roster import Roster
from fl_server.wire import from_records, to_records
from scaleot_core.errors import Reason
from scaleot_core.federation.messages import (
    Introduction,
    IntroductionRequest,
    Payload,
    decode_statement,
    encode_statement,
)
from tests.support.grids import Clock, stepping_client_app


def exchange_of(app: ClientApp, names: list[str]) -> Exchange:
    clock = Clock()
    grid = InProcessGrid(app, [{"name": name, "step": "1", "examples": "1"} for name in names])
    return Exchange(grid, clock=clock, sleep=clock.sleep)


def counting_app(asked: list[str], **lies: str) -> ClientApp:
    app = ClientApp()

    @app.query("introduce")
    def introduce(message: Message, context: Context) -> Message:
        request = decode_statement(from_records(message.content).statement, IntroductionRequest)
        asked.append(str(context.node_config["name"]))
        answer = {"run": request.run, "nonce": request.nonce, "client": str(context.node_config["name"]), **lies}
        return Message(to_records(Payload(encode_statement(Introduction(**answer)))), reply_to=message)

    return app


def test_every_node_is_known_by_the_name_it_gives() -> None:
    exchange = exchange_of(stepping_client_app(), ["b", "a"])
    roster = Roster(exchange, "run-1")
    assert roster.update(deadline=10.0) == ()
    first, second = exchange.connected_nodes()
    assert roster.idle_clients() == {"b": first, "a": second}


def test_a_node_is_asked_once() -> None:
    asked: list[str] = []
    roster = Roster(exchange_of(counting_app(asked), ["a", "b"]), "run-1")
    roster.update(deadline=10.0)
    roster.update(deadline=10.0)
    assert asked == ["a", "b"]


def test_a_name_that_two_nodes_claim_belongs_to_neither() -> None:
    roster = Roster(exchange_of(stepping_client_app(), ["a", "b", "a"]), "run-1")
    (turned_away,) = roster.update(deadline=10.0)
    assert (turned_away.client, turned_away.reason) == ("a", Reason.BINDING)
    assert list(roster.idle_clients()) == ["b"]


@pytest.mark.parametrize("lie", [{"run": "run-2"}, {"nonce": "f" * 64}])
def test_an_introduction_for_another_run_or_request_is_refused(lie: dict[str, str]) -> None:
    roster = Roster(exchange_of(counting_app([], **lie), ["a"]), "run-1")
    (turned_away,) = roster.update(deadline=10.0)
    assert turned_away.reason is Reason.BINDING
    assert roster.idle_clients() == {}


def test_an_introduction_that_is_none_is_refused() -> None:
    app = ClientApp()

    @app.query("introduce")
    def introduce(message: Message, context: Context) -> Message:
        return Message(to_records(Payload(b"{}")), reply_to=message)

    (turned_away,) = Roster(exchange_of(app, ["a"]), "run-1").update(deadline=10.0)
    assert turned_away.reason is Reason.FORMAT


def test_a_node_that_left_is_forgotten(tmp_path: Path) -> None:
    exchange = exchange_of(stepping_client_app(), ["a", "b"])
    roster = Roster(exchange, "run-1")
    roster.update(deadline=10.0)
    grid = exchange._grid
    assert isinstance(grid, InProcessGrid)
    del grid._contexts[exchange.connected_nodes()[0]]
    roster.update(deadline=10.0)
    assert list(roster.idle_clients()) == ["b"]
