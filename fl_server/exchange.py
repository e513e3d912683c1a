"""One request to a node and its one reply, over any of Flower's grids."""

from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from fl_server.wire import from_records, to_records
from scaleot_core.errors import MalformedStatementError, Reason, UpdateRejectedError
from scaleot_core.federation.messages import Payload

POLL_SECONDS = 0.5
"""Each look costs a request for every node that is waited for."""
REPLY_GRACE_SECONDS = 60.0
"""A message outlives its deadline by this, so that the last look after the deadline still finds the reply."""


@dataclass(frozen=True)
class Request:
    """A message that is on its way."""

    message_id: str
    """Empty if the grid did not take it."""
    node: int
    message_type: str
    label: str
    """Whom it went to, for messages to people."""
    sent_at: float
    """On the exchange's clock."""


class Exchange:
    """Sends requests and looks for their replies, one at a time in the order the caller wants them.

    A reply that nobody has asked for yet stays with the grid, so the server never holds more than one. A node whose
    reply was given up is busy, and gets no other request, until the late reply has come and been dropped.
    """

    def __init__(self, grid: Grid, *, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self.clock = clock
        self._grid, self._sleep = grid, sleep
        self._given_up: dict[str, Request] = {}
        self.waited_seconds = 0.0

    def connected_nodes(self) -> tuple[int, ...]:
        """Returns the nodes that are connected, in ascending order."""
        return tuple(sorted(self._grid.get_node_ids()))

    def drop_late_replies(self) -> tuple[Request, ...]:
        """Drops the replies that nobody waits for any more, and returns the requests of those that have come."""
        late = [request for request in self._given_up.values() if self._pull(request.message_id)]
        for request in late:
            del self._given_up[request.message_id]
        return tuple(late)

    def busy_nodes(self) -> frozenset[int]:
        """Returns the nodes that still owe a reply that nobody waits for."""
        return frozenset(request.node for request in self._given_up.values())

    def pause(self) -> None:
        """Waits a moment for something to happen."""
        self._sleep(POLL_SECONDS)
        self.waited_seconds += POLL_SECONDS

    def send(self, node: int, payload: Payload, message_type: str, *, label: str, deadline: float) -> Request:
        """Sends a request; its reply will be there for a little longer than the deadline, on the exchange's clock."""
        now = self.clock()
        message = Message(to_records(payload), node, message_type, ttl=max(deadline - now, 0.0) + REPLY_GRACE_SECONDS)
        message_ids = list(self._grid.push_messages([message]))
        return Request(message_ids[0] if message_ids else "", node, message_type, label, now)

    def collect(self, request: Request) -> Payload | None:
        """Returns the reply if it is there.

        Raises:
            UpdateRejectedError: the node is gone (TIMEOUT) or has failed (ERROR), the reply came from another node
                (BINDING), or its records are malformed (FORMAT). Whoever sent that, it is not the client's own word.
        """
        if not request.message_id:
            raise _rejected(request, Reason.TIMEOUT, "a node that takes the request", "a node that is gone")
        started = self.clock()
        replies = self._pull(request.message_id)
        self.waited_seconds += self.clock() - started  # on the in-process grid that is when the client works
        for message in replies:
            if message.metadata.reply_to_message_id == request.message_id:
                return _payload(message, request)
        return None

    def give_up(self, request: Request) -> None:
        """Waits no longer for a reply; its node is busy until it comes."""
        if request.message_id:
            self._given_up[request.message_id] = request

    def _pull(self, message_id: str) -> list[Message]:
        return list(self._grid.pull_messages([message_id]))


def _payload(message: Message, request: Request) -> Payload:
    if message.metadata.src_node_id != request.node:
        raise _rejected(request, Reason.BINDING, "a reply of the node asked", "another node's")
    if message.has_error():  # its text is the client's own and is not repeated
        raise _rejected(request, Reason.ERROR, "an update", f"Flower's error {message.error.code}")
    try:
        return from_records(message.content)
    except MalformedStatementError as error:
        raise _rejected(request, Reason.FORMAT, error.expected, error.got) from error


def _rejected(request: Request, reason: Reason, expected: str, got: str) -> UpdateRejectedError:
    return UpdateRejectedError(reason, client=request.label, expected=expected, got=got)
