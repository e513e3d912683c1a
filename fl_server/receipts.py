"""Signed receipts: what became of each update, so that a data owner knows, and can show it.

They travel with the next message to their organisation, whichever that is. A message of their own would cost seconds on
Flower's engine, so only the receipts that are left at the end of the run get one: the server asks once more who is
there. Whoever answers has them.
"""

import secrets

from fl_server.exchange import Request
from fl_server.reception import read_introduction
from fl_server.roster import INTRODUCE
from fl_server.round_state import HARD_REASONS, Round, RoundState
from fl_server.server import Server
from scaleot_core.errors import Reason, UpdateRejectedError
from scaleot_core.federation.messages import IntroductionRequest, Receipt
from scaleot_core.federation.signing import sign

CLOSING_SECONDS = 60.0
"""The run is over by then, whoever has its receipts; those left go out when the server is started again."""


def make_receipts(server: Server, current: Round, audit_head: str | None) -> dict[str, bytes]:
    """Returns a signed receipt for everybody who was asked in a round that is over."""
    receipts = {}
    for client in current.cohort:
        outcome = current.outcome(client)
        code = Reason.TIMEOUT if outcome is None else outcome.code
        if code is None and current.state is RoundState.ABORTED:
            code = Reason.CANARY
        receipt = Receipt(
            run=server.settings.run,
            round=current.number,
            client=client,
            status="accepted" if code is None else "refused",
            code=None if code is None else code.value,
            is_retryable=code is not None and code not in HARD_REASONS and code is not Reason.REVOKED,
            update_sha256=None if outcome is None else outcome.update_sha256,
            audit_head=audit_head,
        )
        receipts[client] = sign(receipt, server.voice.key)
    return receipts


def deliver_receipts(server: Server) -> None:
    """Sends the receipts that no message took along, and waits for a moment that they have come."""
    exchange = server.exchange
    deadline = exchange.clock() + min(CLOSING_SECONDS, server.settings.round_deadline_seconds)
    if not (clients := server.store.waiting_for_receipts()):
        return
    server.roster.begin_round(server.settings.rounds, deadline=deadline)  # an earlier life may have known them
    waiting: dict[str, tuple[Request, str, tuple[int, ...]]] = {}
    for client in clients:
        node = server.roster.node_of(client)
        if node is None or node in exchange.busy_nodes():
            continue
        receipts, nonce = server.store.undelivered(client), secrets.token_hex(32)
        question = IntroductionRequest(run=server.settings.run, nonce=nonce)
        payload = server.voice.say(question, receipts=tuple(receipts.values()))
        request = exchange.send(node, payload, INTRODUCE, label=client, deadline=deadline)
        waiting[client] = (request, nonce, tuple(receipts))
    while waiting:
        for client, (request, nonce, rounds) in list(waiting.items()):
            if _has_answered(server, client, request, nonce, rounds):
                del waiting[client]
        if exchange.clock() >= deadline:
            return
        if waiting:
            exchange.pause()


def _has_answered(server: Server, client: str, request: Request, nonce: str, rounds: tuple[int, ...]) -> bool:
    """Whether a reply is there, of whatever kind; the organisation's own confirms the receipts."""
    try:
        payload = server.exchange.collect(request)
        if payload is None:
            return False
        name = read_introduction(
            payload,
            client,
            server.membership,
            run=server.settings.run,
            nonce=nonce,
            round_number=server.settings.rounds,
        )
    except UpdateRejectedError:
        return True
    if name == client:
        server.store.confirm_receipts(client, rounds)
    return True
