import pytest
from flwr.app import Message

from fl_server.exchange import POLL_SECONDS, REPLY_GRACE_SECONDS, Exchange
from fl_server.grid import InProcessGrid
from scaleot_core.errors import Reason, UpdateRejectedError
from scaleot_core.federation.messages import IntroductionRequest, Payload, encode_statement
from tests.support.grids import Clock, stepping_client_app

NONCE = "1" * 64
PAYLOAD = Payload(encode_statement(IntroductionRequest(run="run-1", nonce=NONCE)))


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


def ask(exchange: Exchange, *, deadline: float) -> Payload:
    node = exchange.connected_nodes()[0]
    request = exchange.send(node, PAYLOAD, "query.introduce", label="a", nonce=NONCE, deadline=deadline)
    return exchange.receive(request, deadline)


def test_a_reply_is_waited_for_until_the_deadline() -> None:
    clock = Clock()
    exchange = Exchange(LateGrid(clock, late_until=7.0), clock=clock, sleep=clock.sleep)
    assert ask(exchange, deadline=10.0).statement
    assert clock.now == pytest.approx(7.0, abs=POLL_SECONDS)
    assert exchange.waited_seconds == pytest.approx(clock.now)


def test_a_late_reply_is_dropped_and_its_node_is_busy_until_then() -> None:
    clock = Clock()
    exchange = Exchange(LateGrid(clock, late_until=12.0), clock=clock, sleep=clock.sleep)
    with pytest.raises(UpdateRejectedError) as rejected:
        ask(exchange, deadline=10.0)
    assert rejected.value.reason is Reason.TIMEOUT
    first, _ = exchange.connected_nodes()
    assert exchange.busy_nodes() == {first}
    clock.now = 12.0
    assert exchange.busy_nodes() == frozenset()


def test_a_reply_that_is_there_is_taken_even_after_the_deadline() -> None:
    clock = Clock(now=100.0)
    exchange = Exchange(LateGrid(clock), clock=clock, sleep=clock.sleep)
    assert ask(exchange, deadline=50.0).statement


def test_a_message_outlives_its_deadline_so_that_its_reply_is_still_there() -> None:
    clock = Clock(now=100.0)
    grid = LateGrid(clock)
    exchange = Exchange(grid, clock=clock, sleep=clock.sleep)
    ask(exchange, deadline=130.0)
    assert grid.sent[0].metadata.ttl == pytest.approx(30.0 + REPLY_GRACE_SECONDS)


def test_a_node_that_is_gone_when_it_is_asked_costs_no_time() -> None:
    clock = Clock()
    exchange = Exchange(LateGrid(clock, takes_messages=False), clock=clock, sleep=clock.sleep)
    with pytest.raises(UpdateRejectedError) as rejected:
        ask(exchange, deadline=10.0)
    assert rejected.value.reason is Reason.TIMEOUT
    assert clock.now == 0.0
    assert exchange.busy_nodes() == frozenset()


def test_waiting_for_nodes_ends_at_the_deadline() -> None:
    clock = Clock()
    exchange = Exchange(LateGrid(clock), clock=clock, sleep=clock.sleep)
    exchange.wait_for_nodes(2, deadline=60.0)
    assert clock.now == 0.0
    exchange.wait_for_nodes(3, deadline=60.0)
    assert clock.now == pytest.approx(60.0, abs=POLL_SECONDS)
