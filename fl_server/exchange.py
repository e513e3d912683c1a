"""One request to a node and its one reply, over any of Flower's grids."""

from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from fl_server.wire import from_records, to_records
from scaleot_core.errors import MalformedStatementError, Reason, UpdateRejectedError
from scaleot_core.federation.messages import UNREAD_NONCE, Payload, Refusal, decode_statement

POLL_SECONDS = 0.2
REPLY_GRACE_SECONDS = 60.0
"""A message outlives its deadline by this, so that the last look after the deadline still finds the reply."""


@dataclass(frozen=True)
class Request:
    """A message that is on its way."""

    message_id: str
    """Empty if the grid did not take it."""
    node: int
    label: str
    """Whom it went to, for messages to people."""
    nonce: str


class Exchange:
    """Sends requests and waits for their replies, one at a time in the order the caller wants them.

    A reply that nobody has asked for yet stays with the grid, so the server never holds more than one. A node that
    did not answer by its deadline is busy, and gets no other request, until its late reply has come and been dropped.
    """

    def __init__(self, grid: Grid, *, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self.clock = clock
        self._grid, self._sleep = grid, sleep
        self._unanswered: dict[str, int] = {}
        self.waited_seconds = 0.0

    def connected_nodes(self) -> tuple[int, ...]:
        """Returns the nodes that are connected, in ascending order."""
        return tuple(sorted(self._grid.get_node_ids()))

    def busy_nodes(self) -> frozenset[int]:
        """Drops the late replies that have come meanwhile, and returns the nodes that still owe one."""
        for message in self._pull(list(self._unanswered)):
            self._unanswered.pop(message.metadata.reply_to_message_id, None)
        return frozenset(self._unanswered.values())

    def wait_for_nodes(self, count: int, *, deadline: float) -> None:
        """Returns as soon as ``count`` nodes are connected, or at the deadline."""
        while len(self.connected_nodes()) < count and self.clock() < deadline:
            self._sleep(POLL_SECONDS)

    def send(
        self, node: int, payload: Payload, message_type: str, *, label: str, nonce: str, deadline: float
    ) -> Request:
        """Sends a request; its reply is waited for until ``deadline`` on the exchange's clock."""
        ttl = max(deadline - self.clock(), 0.0) + REPLY_GRACE_SECONDS
        message = Message(to_records(payload), node, message_type, ttl=ttl)
        message_ids = list(self._grid.push_messages([message]))
        return Request(message_ids[0] if message_ids else "", node, label, nonce)

    def receive(self, request: Request, deadline: float) -> Payload:
        """Waits for the reply, and looks once more when the deadline is already over.

        Raises:
            UpdateRejectedError: there is none (TIMEOUT), the node failed or refused (ERROR), it came from another
                node or for another request (BINDING), or its records are malformed (FORMAT).
        """
        started = self.clock()
        try:
            message = self._wait(request, deadline)
        finally:
            self.waited_seconds += self.clock() - started
        return _payload(message, request)

    def _wait(self, request: Request, deadline: float) -> Message:
        if not request.message_id:
            raise _rejected(request, Reason.TIMEOUT, "a node that takes the request", "a node that is gone")
        while True:
            for message in self._pull([request.message_id]):
                if message.metadata.reply_to_message_id == request.message_id:
                    return message
            if self.clock() >= deadline:
                self._unanswered[request.message_id] = request.node
                raise _rejected(request, Reason.TIMEOUT, "a reply before the deadline", "none")
            self._sleep(POLL_SECONDS)

    def _pull(self, message_ids: list[str]) -> list[Message]:
        return list(self._grid.pull_messages(message_ids)) if message_ids else []


def _payload(message: Message, request: Request) -> Payload:
    if message.metadata.src_node_id != request.node:
        raise _rejected(request, Reason.BINDING, "a reply of the node asked", "another node's")
    if message.has_error():  # its text is the client's own and is not repeated
        raise _rejected(request, Reason.ERROR, "an update", f"Flower's error {message.error.code}")
    try:
        payload = from_records(message.content)
    except MalformedStatementError as error:
        raise _rejected(request, Reason.FORMAT, error.expected, error.got) from error
    _raise_if_refused(payload, request)
    return payload


def _raise_if_refused(payload: Payload, request: Request) -> None:
    try:
        refusal = decode_statement(payload.statement, Refusal)
    except MalformedStatementError:
        return
    if refusal.nonce not in (request.nonce, UNREAD_NONCE):
        raise _rejected(request, Reason.BINDING, "the request's nonce", "another")
    raise _rejected(request, Reason.ERROR, "an update", f"a refusal: {refusal.code}")


def _rejected(request: Request, reason: Reason, expected: str, got: str) -> UpdateRejectedError:
    return UpdateRejectedError(reason, client=request.label, expected=expected, got=got)
