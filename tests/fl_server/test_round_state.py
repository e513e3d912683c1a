"""The round's state machine, against a plain model of what it promises, and against its own rows on a disk."""

import shutil
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fl_server.round_state import Answer, Assignment, Round, RoundOrderError, RoundState
from fl_server.round_store import RoundStore, open_round_store
from scaleot_core.errors import Reason

NOW = datetime(2027, 1, 1, tzinfo=UTC)
CLIENTS = ("a", "b", "c")
DIGESTS = ("1" * 64, "2" * 64)


def opened() -> Round:
    return Round(1, "0" * 64, opened_at=NOW, deadline=NOW)


def asked(client: str = "a", attempt: int = 1) -> Assignment:
    return Assignment(client, attempt, "f" * 64, NOW)


def update(client: str = "a", attempt: int = 1, digest: str = DIGESTS[0], code: Reason | None = None) -> Answer:
    return Answer(client, attempt, NOW, code=code, update_sha256=digest, envelope=b"signed " + digest.encode())


def test_the_same_update_twice_counts_once_and_changes_nothing() -> None:
    current = opened().assign(asked()).assign(asked(attempt=2)).receive(update())
    assert current.receive(update(attempt=2)) is current
    assert current.receive(update()) is current


def test_two_different_updates_are_both_refused_and_both_kept() -> None:
    current = opened().assign(asked()).assign(asked(attempt=2)).receive(update())
    current = current.receive(update(attempt=2, digest=DIGESTS[1]))
    assert current.accepted == {}
    assert [answer.code for answer in current.answers] == [Reason.EQUIVOCATION] * 2
    assert len({answer.envelope for answer in current.answers}) == 2


def test_what_is_not_signed_takes_nothing_from_the_organisation() -> None:
    forged = Answer("a", 1, NOW, code=Reason.SIGNATURE, update_sha256=None)
    current = opened().assign(asked()).receive(forged)
    assert not current.is_settled("a")
    current = current.assign(asked(attempt=2)).receive(update(attempt=2))
    assert list(current.accepted) == ["a"]


@pytest.mark.parametrize(
    "step",
    [
        lambda one: one.receive(update("b")),
        lambda one: one.assign(asked(attempt=3)),
        lambda one: one.aggregate("3" * 64),
        lambda one: one.commit(),
        lambda one: one.close().receive(update()),
        lambda one: one.close().assign(asked("b")),
        lambda one: one.abort("x").abort("y"),
        lambda one: one.close().aggregate("3" * 64).commit().abort("x"),
    ],
)
def test_a_step_that_the_state_does_not_allow_is_refused(step) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RoundOrderError):
        step(opened().assign(asked()))


class Rounds(RuleBasedStateMachine):
    """Asks, answers, duplicates, forgeries, crashes and ends, in any order."""

    @initialize()
    def begin(self) -> None:
        self.directory, self.stack = Path(tempfile.mkdtemp()), ExitStack()
        self.signed: dict[str, set[str]] = {client: set() for client in CLIENTS}
        self.good: set[str] = set()
        self.current = opened()
        self.store = self._open()
        self.store.save(self.current)

    def _open(self) -> RoundStore:
        return self.stack.enter_context(open_round_store(self.directory, "run-1"))

    def _save(self, after: Round, *clients: str) -> None:
        self.current = self.store.save(after, clients=clients)

    @precondition(lambda self: self.current.state is RoundState.OPEN)
    @rule(client=st.sampled_from(CLIENTS))
    def ask(self, client: str) -> None:
        self._save(self.current.assign(asked(client, self.current.attempts(client) + 1)), client)

    @precondition(lambda self: self.current.state is RoundState.OPEN and self.current.assignments)
    @rule(data=st.data(), digest=st.sampled_from(DIGESTS), code=st.sampled_from([None, Reason.NORM]))
    def answer(self, data: st.DataObject, digest: str, code: Reason | None) -> None:
        one = data.draw(st.sampled_from(self.current.assignments))
        is_news = not self.current.is_answered(one)
        self._save(self.current.receive(update(one.client, one.attempt, digest, code)), one.client)
        if is_news:
            if not self.signed[one.client] and code is None:
                self.good.add(one.client)
            self.signed[one.client].add(digest)

    @precondition(lambda self: self.current.state is RoundState.OPEN and self.current.assignments)
    @rule(data=st.data(), code=st.sampled_from([Reason.SIGNATURE, Reason.TIMEOUT, Reason.ERROR]))
    def forge(self, data: st.DataObject, code: Reason) -> None:
        one = data.draw(st.sampled_from(self.current.assignments))
        self._save(self.current.receive(Answer(one.client, one.attempt, NOW, code=code)), one.client)

    @rule()
    def crash(self) -> None:
        self.stack.close()
        self.stack = ExitStack()
        self.store = self._open()

    @precondition(lambda self: not self.current.state.is_over)
    @rule(is_aborted=st.booleans())
    def go_on(self, is_aborted: bool) -> None:
        if is_aborted:
            self._save(self.current.abort("the canary fell"))
        elif self.current.state is RoundState.OPEN:
            self._save(self.current.close(), *self.current.cohort)
        elif self.current.state is RoundState.CLOSED:
            self._save(self.current.aggregate("3" * 64))
        else:
            self._save(self.current.commit())

    @invariant()
    def exactly_the_unequivocal_good_updates_count(self) -> None:
        if hasattr(self, "current"):
            counting = {client for client in self.good if len(self.signed[client]) == 1}
            assert set(self.current.accepted) == counting

    @invariant()
    def the_disk_says_the_same(self) -> None:
        if hasattr(self, "store"):
            stored = self.store.newest()
            assert stored is not None
            assert (stored.state, stored.reason, stored.accepted) == (
                self.current.state,
                self.current.reason,
                self.current.accepted,
            )
            assert set(stored.answers) == set(self.current.answers)
            assert set(stored.assignments) == set(self.current.assignments)

    @invariant()
    def only_a_committed_round_moves_the_adapter(self) -> None:
        if hasattr(self, "current"):
            is_moved = self.current.adapter_sha256 != self.current.base_sha256
            assert is_moved == (self.current.state is RoundState.COMMITTED)

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()
            shutil.rmtree(self.directory)


TestRounds = Rounds.TestCase
TestRounds.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
