"""Which node speaks for which client."""

import secrets
from collections import Counter

from fl_server.exchange import Exchange, Request
from scaleot_core.errors import MalformedStatementError, Reason, UpdateRejectedError
from scaleot_core.federation.messages import (
    Introduction,
    IntroductionRequest,
    Payload,
    decode_statement,
    encode_statement,
)

INTRODUCE = "query.introduce"


class Roster:
    """The clients by name, from what every node says of itself.

    A name that two connected nodes claim belongs to neither. What a node says is not signed yet, so a name orders the
    rounds and labels the records; it proves nothing.
    """

    def __init__(self, exchange: Exchange, run: str) -> None:
        self._exchange, self._run = exchange, run
        self._claims: dict[int, str] = {}

    def update(self, *, deadline: float) -> tuple[UpdateRejectedError, ...]:
        """Forgets the nodes that are gone, asks the new ones who they are, and returns whom it turned away and why."""
        connected, busy = self._exchange.connected_nodes(), self._exchange.busy_nodes()
        self._claims = {node: name for node, name in self._claims.items() if node in connected}
        unknown = [node for node in connected if node not in self._claims and node not in busy]
        turned_away = []
        for request in [self._ask(node, deadline) for node in unknown]:
            try:
                self._claims[request.node] = self._name(self._exchange.receive(request, deadline), request)
            except UpdateRejectedError as error:
                turned_away.append(error)
        return (*turned_away, *self._contested())

    def idle_clients(self) -> dict[str, int]:
        """Returns the node of every client whose name no other node claims and who owes no reply."""
        count, busy = Counter(self._claims.values()), self._exchange.busy_nodes()
        return {name: node for node, name in self._claims.items() if count[name] == 1 and node not in busy}

    def _ask(self, node: int, deadline: float) -> Request:
        nonce = secrets.token_hex(32)
        payload = Payload(encode_statement(IntroductionRequest(run=self._run, nonce=nonce)))
        return self._exchange.send(node, payload, INTRODUCE, label=f"node {node}", nonce=nonce, deadline=deadline)

    def _name(self, payload: Payload, request: Request) -> str:
        try:
            introduction = decode_statement(payload.statement, Introduction)
        except MalformedStatementError as error:
            raise UpdateRejectedError(
                Reason.FORMAT, client=request.label, expected=error.expected, got=error.got
            ) from error
        if (introduction.run, introduction.nonce) != (self._run, request.nonce):
            raise UpdateRejectedError(
                Reason.BINDING, client=request.label, expected="this run and request", got="another"
            )
        return introduction.client

    def _contested(self) -> tuple[UpdateRejectedError, ...]:
        count = Counter(self._claims.values())
        return tuple(
            UpdateRejectedError(Reason.BINDING, client=name, expected="one node", got=f"{claims} nodes of this name")
            for name, claims in sorted(count.items())
            if claims > 1
        )
