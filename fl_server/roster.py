"""Which node speaks for which client."""

import secrets
from collections import Counter
from dataclasses import dataclass, field

from fl_server.exchange import Exchange, Request
from fl_server.membership import Membership
from fl_server.reception import read_introduction
from fl_server.run_key import RunVoice
from scaleot_core.errors import Reason, UpdateRejectedError
from scaleot_core.federation.messages import IntroductionRequest

INTRODUCE = "query.introduce"


@dataclass
class _Asked:
    request: Request
    nonce: str


@dataclass
class Roster:
    """The clients by name, from what every node says and its organisation has signed.

    A name that two connected nodes claim belongs to neither: one of them has the organisation's key, or its copy.
    """

    exchange: Exchange
    voice: RunVoice
    membership: Membership
    run: str
    _names: dict[int, str] = field(default_factory=dict)
    _asked: dict[int, _Asked] = field(default_factory=dict)
    _turned_away: dict[int, UpdateRejectedError] = field(default_factory=dict)

    def look(self, round_number: int, *, deadline: float) -> None:
        """Forgets the nodes that are gone, asks new ones who they are, and hears those that have answered."""
        connected = self.exchange.connected_nodes()
        for known in (self._names, self._asked, self._turned_away):
            for node in known.keys() - set(connected):
                del known[node]
        known_nodes = self._names.keys() | self._asked.keys() | self._turned_away.keys() | self.exchange.busy_nodes()
        for node in connected:
            if node not in known_nodes:
                self._ask(node, deadline)
        for node in list(self._asked):
            self._hear(node, round_number)

    def begin_round(self, round_number: int, *, deadline: float) -> tuple[UpdateRejectedError, ...]:
        """Looks until every node has said who it is, or until the deadline; returns whom it turned away and why.

        Whoever was turned away before is asked again.
        """
        self._turned_away.clear()
        self._names = {
            node: name for node, name in self._names.items() if self.membership.is_active(name, round_number)
        }
        self.look(round_number, deadline=deadline)
        while self._asked and self.exchange.clock() < deadline:
            self.exchange.pause()
            self.look(round_number, deadline=deadline)
        for node in list(self._asked):
            asked = self._asked.pop(node)
            self.exchange.give_up(asked.request)
            self._turned_away[node] = UpdateRejectedError(
                Reason.TIMEOUT, client=asked.request.label, expected="an introduction", got="none"
            )
        return (*self._turned_away.values(), *self._contested())

    def node_of(self, client: str) -> int | None:
        """Returns the node of a client that is connected; ``None`` if there is none, or more than one."""
        nodes = [node for node, name in self._names.items() if name == client]
        return nodes[0] if len(nodes) == 1 else None

    def idle_clients(self) -> tuple[str, ...]:
        """Returns the clients whose name no other node claims and who owe no reply, by name."""
        count, busy = Counter(self._names.values()), self.exchange.busy_nodes()
        return tuple(sorted(name for node, name in self._names.items() if count[name] == 1 and node not in busy))

    def _ask(self, node: int, deadline: float) -> None:
        nonce = secrets.token_hex(32)
        payload = self.voice.say(IntroductionRequest(run=self.run, nonce=nonce))
        request = self.exchange.send(node, payload, INTRODUCE, label=f"node {node}", deadline=deadline)
        self._asked[node] = _Asked(request, nonce)

    def _hear(self, node: int, round_number: int) -> None:
        asked = self._asked[node]
        try:
            payload = self.exchange.collect(asked.request)
            if payload is None:
                return
            self._names[node] = read_introduction(
                payload,
                asked.request.label,
                self.membership,
                run=self.run,
                nonce=asked.nonce,
                round_number=round_number,
            )
        except UpdateRejectedError as error:
            self._turned_away[node] = error
        del self._asked[node]

    def _contested(self) -> tuple[UpdateRejectedError, ...]:
        count = Counter(self._names.values())
        return tuple(
            UpdateRejectedError(Reason.BINDING, client=name, expected="one node", got=f"{claims} nodes of this name")
            for name, claims in sorted(count.items())
            if claims > 1
        )
