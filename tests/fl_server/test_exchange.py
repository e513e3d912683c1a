import pytest
from flwr.app import Message

from fl_server.exchange import POLL_SECONDS, REPLY_GRACE_SECONDS, Exchange, Request
from fl_server.grid import InProcessGrid
from scaleot_core.errors import Reason, UpdateRejectedError
from scaleot_core.federation.messages import IntroductionRequest, Payload
from scaleot_core.federation.signing import sign
from tests.support.grids import Clock, owner_key, stepping_client_app

PAYLOAD = Payload(sign(IntroductionRequest(run="run-1", nonce="1" * 64), owner_key()))


class LateGrid(InProcessGrid):
    """A grid that gives out replies only from a moment on, and may take no message."""

    def __init__(self, clock: Clock, *, late_until: float = 0.0, takes_messages: bool = True) -> None:
        super().__init__(stepping_client_app(), [{"name": "a", "step": "1", "examples": "1"}] * 2)
        self.clock, self.late_until, self.takes_messages = clock, late_until, takes_messages
        self.sent: list[Message] = []

    def push_messages(self, messages):
        messages = list(messages)
        self.sent += messages
        return super().push_messages(messages) if self.takes_messages else []

    def pull_messages(self, message_ids):
        return super().pull_messages(message_ids) if self.clock.now >= self.late_until else []


def ask(exchange: Exchange, *, deadline: float = 10.0) -> Request:
    return exchange.send(exchange.connected_nodes()[0], PAYLOAD, "query.introduce", label="a", deadline=deadline)


def test_a_reply_is_there_as_soon_as_the_grid_has_it() -> None:
    clock = Clock()
    exchange = Exchange(LateGrid(clock, late_until=7.0), clock=clock, sleep=clock.sleep)
    request, reply = ask(exchange), None
    while (reply := exchange.collect(request)) is None:
        exchange.pause()
    assert reply.statement
    assert clock.now == pytest.approx(7.0, abs=POLL_SECONDS)
    assert exchange.waited_seconds == pytest.approx(clock.now)


def test_a_late_reply_is_dropped_and_its_node_is_busy_until_then() -> None:
    clock = Clock()
    exchange = Exchange(LateGrid(clock, late_until=12.0), clock=clock, sleep=clock.sleep)
    request = ask(exchange)
    assert exchange.collect(request) is None
    exchange.give_up(request)
    first, _ = exchange.connected_nodes()
    assert exchange.drop_late_replies() == () and exchange.busy_nodes() == {first}
    clock.now = 12.0
    assert exchange.drop_late_replies() == (request,)
    assert exchange.busy_nodes() == frozenset()


def test_a_message_outlives_its_deadline_so_that_its_reply_is_still_there() -> None:
    clock = Clock(now=100.0)
    grid = LateGrid(clock)
    ask(Exchange(grid, clock=clock, sleep=clock.sleep), deadline=130.0)
    assert grid.sent[0].metadata.ttl == pytest.approx(30.0 + REPLY_GRACE_SECONDS)


def test_a_node_that_is_gone_when_it_is_asked_costs_no_time() -> None:
    clock = Clock()
    exchange = Exchange(LateGrid(clock, takes_messages=False), clock=clock, sleep=clock.sleep)
    request = ask(exchange)
    with pytest.raises(UpdateRejectedError) as rejected:
        exchange.collect(request)
    assert rejected.value.reason is Reason.TIMEOUT
    exchange.give_up(request)
    assert (clock.now, exchange.busy_nodes()) == (0.0, frozenset())
