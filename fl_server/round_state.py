"""What a round is between its opening and its end: values and the steps from one to the next, without a disk.

::

    OPEN --close--> CLOSED --aggregate--> AGGREGATED --commit--> COMMITTED
      '------------------'------ abort ------'---------------> ABORTED

While a round is open, organisations are asked and answer. An organisation counts once, however often it was asked:
the same update again changes nothing, and two different ones are both refused. From CLOSED on nothing is received any
more, so the aggregate follows from what is written: a crash has it computed again, to the same bytes.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from scaleot_core.errors import Reason

HARD_REASONS = frozenset(
    {
        Reason.DIGEST,
        Reason.EQUIVOCATION,
        Reason.LEDGER,
        Reason.NONFINITE,
        Reason.NORM,
        Reason.PRIVACY,
        Reason.SCHEMA,
        Reason.SIZE,
        Reason.WEIGHT,
    }
)
"""Refusals that an honest organisation does not earn; what it signed for the request counts towards its suspension."""


class RoundState(StrEnum):
    """Where a round stands."""

    OPEN = "OPEN"
    CLOSED = "CLOSED"
    AGGREGATED = "AGGREGATED"
    COMMITTED = "COMMITTED"
    ABORTED = "ABORTED"

    @property
    def is_over(self) -> bool:
        """Whether nothing comes after it."""
        return self in (RoundState.COMMITTED, RoundState.ABORTED)


class RoundOrderError(Exception):
    """A fault of ours: a step that the round's state does not allow."""


@dataclass(frozen=True)
class Assignment:
    """One request to one organisation."""

    client: str
    attempt: int
    nonce: str
    asked_at: datetime


@dataclass(frozen=True)
class Answer:
    """What became of one request: an update that counts, or a refusal."""

    client: str
    attempt: int
    answered_at: datetime
    code: Reason | None = None
    """Why it does not count; ``None`` if it does."""
    detail: str = ""
    update_sha256: str | None = None
    """Of the bytes that the organisation says are its update."""
    envelope: bytes = b""
    """The statement that the organisation has signed for this request; empty where anybody may have sent the answer."""
    size_bytes: int = 0

    @property
    def is_accepted(self) -> bool:
        """Whether it counts."""
        return self.code is None

    @property
    def is_final(self) -> bool:
        """Whether the organisation need not be asked again: this is its own word, or it is not asked any more."""
        return self.is_accepted or bool(self.envelope) or self.code is Reason.REVOKED


@dataclass(frozen=True)
class Round:
    """A round as it is written down."""

    number: int
    base_sha256: str
    opened_at: datetime
    deadline: datetime
    """By the wall clock, for people; the server itself waits by a clock that nobody can set."""
    state: RoundState = RoundState.OPEN
    assignments: tuple[Assignment, ...] = ()
    answers: tuple[Answer, ...] = ()
    """At most one for each assignment, in the order in which they came."""
    aggregate_sha256: str | None = None
    reason: str | None = None
    """Why it was aborted."""

    @property
    def cohort(self) -> tuple[str, ...]:
        """The organisations that were asked, by name."""
        return tuple(sorted({assignment.client for assignment in self.assignments}))

    @property
    def accepted(self) -> dict[str, Answer]:
        """The answer that counts of each organisation that has one, by name: the order of aggregation."""
        counting = {answer.client: answer for answer in reversed(self.answers) if answer.is_accepted}
        return {client: counting[client] for client in sorted(counting)}

    def attempts(self, client: str) -> int:
        """Returns how often an organisation was asked."""
        return sum(assignment.client == client for assignment in self.assignments)

    def assignment(self, client: str, attempt: int) -> Assignment:
        """Returns one request; raises ``RoundOrderError`` if there was none."""
        for assignment in self.assignments:
            if (assignment.client, assignment.attempt) == (client, attempt):
                return assignment
        raise RoundOrderError(f"round {self.number} never asked {client} for attempt {attempt}")

    def is_answered(self, assignment: Assignment) -> bool:
        """Whether something came back to a request."""
        asked = (assignment.client, assignment.attempt)
        return any((answer.client, answer.attempt) == asked for answer in self.answers)

    def outcome(self, client: str) -> Answer | None:
        """Returns the answer that stands for an organisation: one that counts, else its last word, else the last."""
        answers = [answer for answer in self.answers if answer.client == client]
        ranked = sorted(answers, key=lambda answer: (answer.is_accepted, answer.is_final, answer.attempt))
        return ranked[-1] if ranked else None

    def is_settled(self, client: str) -> bool:
        """Whether an organisation need not be asked again."""
        outcome = self.outcome(client)
        return outcome is not None and outcome.is_final

    def assign(self, assignment: Assignment) -> "Round":
        """Notes that an organisation is asked, for the first time or again.

        Raises:
            RoundOrderError: the round is not open, or this is not the organisation's next attempt.
        """
        self._check(RoundState.OPEN)
        if assignment.attempt != self.attempts(assignment.client) + 1:
            raise RoundOrderError(f"{assignment.client}: attempt {assignment.attempt} is not its next one")
        return replace(self, assignments=(*self.assignments, assignment))

    def receive(self, answer: Answer) -> "Round":
        """Notes an answer; the same update a second time, or a second answer to one request, changes nothing.

        Two different updates that an organisation has signed are both refused, whatever else is said of them.

        Raises:
            RoundOrderError: the round is not open, or the organisation was not asked for this attempt.
        """
        self._check(RoundState.OPEN)
        self.assignment(answer.client, answer.attempt)
        earlier = [one for one in self.answers if one.client == answer.client]
        if any(one.attempt == answer.attempt for one in earlier):
            return self
        digests = {one.update_sha256 for one in earlier if one.envelope and one.update_sha256}
        if answer.envelope and answer.update_sha256 and digests:
            if answer.update_sha256 in digests and len(digests) == 1:
                return self
            return self._equivocate(answer)
        return replace(self, answers=(*self.answers, answer))

    def refuse(self, client: str, code: Reason, detail: str) -> "Round":
        """Takes back what counted of an organisation; raises ``RoundOrderError`` if the round is not open."""
        self._check(RoundState.OPEN)
        answers = (
            replace(one, code=code, detail=detail) if one.client == client and one.is_accepted else one
            for one in self.answers
        )
        return replace(self, answers=tuple(answers))

    def close(self) -> "Round":
        """Receives nothing more."""
        self._check(RoundState.OPEN)
        return replace(self, state=RoundState.CLOSED)

    def aggregate(self, aggregate_sha256: str) -> "Round":
        """Has an adapter."""
        self._check(RoundState.CLOSED)
        return replace(self, state=RoundState.AGGREGATED, aggregate_sha256=aggregate_sha256)

    def commit(self) -> "Round":
        """Makes its adapter the federation's."""
        self._check(RoundState.AGGREGATED)
        return replace(self, state=RoundState.COMMITTED)

    def abort(self, reason: str) -> "Round":
        """Ends without an adapter: its base stays the federation's."""
        if self.state.is_over:
            raise RoundOrderError(f"round {self.number} is {self.state} and cannot be aborted")
        return replace(self, state=RoundState.ABORTED, reason=reason)

    @property
    def adapter_sha256(self) -> str:
        """The federation's adapter after this round, or until it is over."""
        is_committed = self.state is RoundState.COMMITTED and self.aggregate_sha256
        return self.aggregate_sha256 or self.base_sha256 if is_committed else self.base_sha256

    def _check(self, state: RoundState) -> None:
        if self.state is not state:
            raise RoundOrderError(f"round {self.number} is {self.state}, expected {state}")

    def _equivocate(self, answer: Answer) -> "Round":
        detail = "two different updates were signed for one round"
        refused = (
            replace(one, code=Reason.EQUIVOCATION, detail=detail)
            if one.client == answer.client and one.envelope
            else one
            for one in (*self.answers, answer)
        )
        return replace(self, answers=tuple(refused))
