"""An open round: who is asked, who is asked again, and what comes back."""

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from secrets import token_hex
from typing import Any

from fl_server.blob_store import Refused
from fl_server.exchange import Request
from fl_server.reception import SignedRefusal, read_reply
from fl_server.round_state import Answer, Assignment, Round
from fl_server.server import Server
from scaleot_core.errors import Reason, UpdateRejectedError
from scaleot_core.federation.messages import Payload
from scaleot_core.federation.validation import BoundUpdate, ExpectedUpdate, validate_update
from scaleot_core.privacy.private_rounds import promised_event
from scaleot_core.privacy.promised_norm import check_promised_norm
from scaleot_core.shapes import TensorDict

TRAIN = "train"


def new_assignment(current: Round, client: str) -> Assignment:
    """Returns the next request to an organisation, with a nonce of its own."""
    return Assignment(client, current.attempts(client) + 1, token_hex(32), datetime.now(UTC))


@dataclass(frozen=True)
class _Waiting:
    """One request under way, what its reply must be bound to, and the receipts that went with it."""

    request: Request
    assignment: Assignment
    expected: ExpectedUpdate
    receipts: tuple[int, ...]


@dataclass
class Collection:
    """The requests of one round, in one life of the server.

    An organisation is asked again when its node is gone, has failed or has not answered in half of the deadline, and
    when what came back is not its own word. It answers every attempt with the same bytes. Requests of an earlier life
    are lost with it, and those that nothing came back to are made again, word for word.
    """

    server: Server
    round: Round
    base: TensorDict
    deadline: float
    """On the exchange's clock."""
    bytes_down: int = 0
    """Sent so far, in this life."""
    _waiting: dict[str, list[_Waiting]] = field(default_factory=dict)
    _times_asked: dict[str, int] = field(default_factory=dict)

    def collect(self) -> Round:
        """Returns the round as soon as there are updates enough, or nobody left to wait for, or at the deadline.

        Raises:
            OutputError: the disk is full or cannot be written; the round is as it was written last.
        """
        exchange = self.server.exchange
        while True:
            self._note_late_replies()
            self.server.roster.look(self.round.number, deadline=self.deadline)
            for client in self.round.cohort:
                if not self._is_full:
                    self._look_at(client)
            for client in self.round.accepted:  # whoever was asked twice may have answered twice, and differently
                for waiting in tuple(self._waiting.get(client, ())):
                    self._hear(waiting)
            if self._is_full or not self._is_anybody_left or exchange.clock() >= self.deadline:
                break
            exchange.pause()
        for waiting in (one for several in self._waiting.values() for one in several):
            exchange.give_up(waiting.request)
        return self._with_silent_ones()

    @property
    def _is_full(self) -> bool:
        return len(self.round.accepted) >= self.server.settings.clients_per_round

    @property
    def _is_anybody_left(self) -> bool:
        return any(
            self._waiting.get(client) or self._may_be_asked(client)
            for client in self.round.cohort
            if not self.round.is_settled(client)
        )

    def _look_at(self, client: str) -> None:
        """Hears what has come from a client, and asks it if it is time to."""
        for waiting in tuple(self._waiting.get(client, ())):
            self._hear(waiting)
        if not self.round.is_settled(client) and self._is_due(client):
            self._ask(client)
            for waiting in tuple(self._waiting.get(client, ())):
                self._hear(waiting)

    def _may_be_asked(self, client: str) -> bool:
        return self._times_asked.get(client, 0) < self.server.settings.max_attempts

    def _is_due(self, client: str) -> bool:
        if not self._may_be_asked(client) or self.server.roster.node_of(client) is None:
            return False
        if not (waiting := self._waiting.get(client)):
            return True
        sent_at = waiting[0].request.sent_at
        return len(waiting) == 1 and self.server.exchange.clock() >= sent_at + (self.deadline - sent_at) / 2

    def _ask(self, client: str) -> None:
        server, node = self.server, self.server.roster.node_of(client)
        assignment = self._assignment(client)
        instructions = server.instructions(self.round, client, attempt=assignment.attempt, nonce=assignment.nonce)
        receipts = server.store.undelivered(client)
        self._times_asked[client] = self._times_asked.get(client, 0) + 1
        try:
            expected = server.expected(instructions, self.base)
        except UpdateRejectedError as error:
            self._note(_refusal(assignment, error))
            return
        blob = server.store.blobs.get(self.round.base_sha256)
        payload = server.voice.say(instructions, blob, tuple(receipts.values()))
        request = server.exchange.send(node or 0, payload, TRAIN, label=client, deadline=self.deadline)
        if not request.message_id:  # its node has just gone: the same request goes to the next one
            self._times_asked[client] -= 1
            return
        self.bytes_down += payload.size_bytes
        self._waiting.setdefault(client, []).append(_Waiting(request, assignment, expected, tuple(receipts)))

    def _assignment(self, client: str) -> Assignment:
        """Returns the last request if no node has it, an earlier life's too, or writes down a new one."""
        last = self.round.assignment(client, self.round.attempts(client))
        is_under_way = any(waiting.assignment == last for waiting in self._waiting.get(client, ()))
        if not is_under_way and not self.round.is_answered(last):
            return last
        assignment = new_assignment(self.round, client)
        self.round = self.server.store.save(self.round.assign(assignment), clients=[client])
        return assignment

    def _hear(self, waiting: _Waiting) -> None:
        """Takes the reply to a request, if it is there."""
        payload = None
        try:
            payload = self.server.exchange.collect(waiting.request)
            if payload is None:
                return
            said = read_reply(payload, waiting.expected)
        except UpdateRejectedError as error:  # not the client's own word
            answer = _refusal(waiting.assignment, error, size_bytes=payload.size_bytes if payload else 0)
        else:
            if waiting.receipts:
                self.server.store.confirm_receipts(waiting.assignment.client, waiting.receipts)
            answer = self._judge(waiting, payload, said)
        self._waiting[waiting.assignment.client].remove(waiting)
        self._note(answer)
        if payload is not None and not answer.is_accepted:
            self._put_aside(payload, answer)

    def _judge(self, waiting: _Waiting, payload: Payload, said: BoundUpdate | SignedRefusal) -> Answer:
        """Returns what a client's own word is worth; an update that counts is on the disk by then."""
        server, assignment, expected = self.server, waiting.assignment, waiting.expected
        digest = said.statement.update_sha256 if isinstance(said, BoundUpdate) else None
        word = Answer(
            assignment.client,
            assignment.attempt,
            datetime.now(UTC),
            update_sha256=digest,
            envelope=payload.statement,
            size_bytes=payload.size_bytes,
        )
        try:
            if not server.membership.is_active(assignment.client, self.round.number):
                raise _rejected(assignment, Reason.REVOKED, "an active organisation", "a revoked one")
            if isinstance(said, SignedRefusal):
                raise _rejected(assignment, Reason.ERROR, "an update", f"a refusal: {said.code}")
            update = validate_update(said, expected)
            asked = server.settings.asked_training
            if asked is not None and update.privacy is not None:
                event = promised_event(asked, update.client, update.privacy, update.num_examples)
                check_promised_norm(asked, event, update, self.base)
                server.check_ledger_went_on(update.client, update.privacy, round_number=self.round.number)
        except UpdateRejectedError as error:
            return replace(word, code=error.reason, detail=_detail(error))
        server.store.blobs.put(payload.tensors)
        return word

    def _note(self, answer: Answer) -> None:
        """Writes an answer down, and the events that people want to know."""
        after = self.round.receive(answer)
        if after is self.round:
            return
        is_settled = self.round.is_settled(answer.client)
        self.round = self.server.store.save(after, clients=[answer.client], events=self._events(after, answer))
        if not is_settled and after.is_settled(answer.client):
            self.server.stage.advance()

    def _put_aside(self, payload: Payload, answer: Answer) -> None:
        if payload.tensors and answer.code is not None:
            note = Refused(answer.client, self.round.number, answer.code, answer.detail, payload.statement)
            self.server.quarantine.put(payload.tensors, note)

    def _note_late_replies(self) -> None:
        for request in self.server.exchange.drop_late_replies():
            if request.message_type == TRAIN:
                body = {"round": self.round.number, "client": request.label, "code": Reason.STALE.value}
                self.server.store.save(self.round, events=[("update.late", body)])

    def _with_silent_ones(self) -> Round:
        """Returns the round with a word on everybody who has not answered; it is written down when the round closes."""
        current = self.round
        for client in current.cohort:
            last = current.assignment(client, current.attempts(client))
            if not current.is_settled(client):
                self.server.stage.advance()
            if not current.is_answered(last) and not current.is_settled(client):
                code = Reason.STALE if self._is_full else Reason.TIMEOUT
                got = "enough others" if self._is_full else "none"
                rejected = _rejected(last, code, "a reply before the round closed", got)
                current = current.receive(_refusal(last, rejected))
        return current

    def _events(self, current: Round, answer: Answer) -> list[tuple[str, Mapping[str, Any]]]:
        """Returns what the audit log is told; every member gets its head, and can try which content has that.

        So nothing of an update stands there, not even its digest, where the server's noise is to hide it.
        """
        body = {"round": current.number, "client": answer.client, "attempt": answer.attempt}
        hides_clients = self.server.settings.client_level is not None
        outcome = current.outcome(answer.client)
        if outcome is not None and outcome.code is Reason.EQUIVOCATION:
            envelopes = [one.envelope for one in current.answers if one.client == answer.client and one.envelope]
            shown = [b64encode(envelope).decode() for envelope in envelopes[-2:]]
            return [("update.equivocation", body if hides_clients else {**body, "envelopes": shown})]
        if answer.code is None:
            return [("update.accepted", body if hides_clients else {**body, "sha256": answer.update_sha256})]
        refused = {**body, "code": answer.code.value}
        return [("update.refused", refused if hides_clients else {**refused, "detail": answer.detail})]


def _refusal(assignment: Assignment, error: UpdateRejectedError, *, size_bytes: int = 0) -> Answer:
    return Answer(
        assignment.client,
        assignment.attempt,
        datetime.now(UTC),
        code=error.reason,
        detail=_detail(error),
        size_bytes=size_bytes,
    )


def _detail(error: UpdateRejectedError) -> str:
    return f"expected {error.expected}, got {error.got}"


def _rejected(assignment: Assignment, reason: Reason, expected: str, got: str) -> UpdateRejectedError:
    return UpdateRejectedError(reason, client=assignment.client, expected=expected, got=got)
