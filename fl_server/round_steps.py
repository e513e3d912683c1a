"""One round from where it stands to its end: collect, close, aggregate, commit. Each is durable before the next."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from fl_server.aggregation import Aggregation, is_finite
from fl_server.audit_trail import publish_events
from fl_server.collection import Collection
from fl_server.owner import RejectedClient, RoundRecord
from fl_server.receipts import make_receipts
from fl_server.reception import stated_update
from fl_server.round_state import Round, RoundState
from fl_server.server import Server
from fl_server.suspension import suspended
from scaleot_core.errors import OutputError, Reason, RoundFailedError, UpdateRejectedError
from scaleot_core.federation.robust import check_clients
from scaleot_core.federation.rules import Aggregation as Rule
from scaleot_core.federation.validation import encode_tensors


class RoundSteps:
    """The steps of one round in one life of the server, and what they took."""

    def __init__(self, server: Server, current: Round, turned_away: Sequence[UpdateRejectedError]) -> None:
        self._server, self._round, self._turned_away = server, current, turned_away
        self._started, self._waited_before = server.exchange.clock(), server.exchange.waited_seconds
        self._bytes_down = 0

    def go(self) -> Round:
        """Returns the round at its end, or open without the quorum; its record says which.

        Raises:
            OutputError: the disk is full or cannot be written.
            StoreError: what is stored is damaged.
        """
        if self._round.state is RoundState.OPEN:
            self._collect()
        if self._round.state is RoundState.CLOSED:
            self._aggregate()
        if self._round.state is RoundState.AGGREGATED:
            self._commit_or_abort()
        return self._round

    def _collect(self) -> None:
        server, seconds = self._server, self._server.settings.round_deadline_seconds
        self._check_room()
        begun = replace(self._round, deadline=datetime.now(UTC) + timedelta(seconds=seconds))
        begun, base = server.store.save(begun), server.adapter(begun.base_sha256)
        collection = Collection(server, begun, base, server.exchange.clock() + seconds)
        collected = collection.collect()
        self._round, self._bytes_down = collection.round, collection.bytes_down
        for client in collected.accepted:
            if not server.membership.is_active(client, collected.number):
                collected = collected.refuse(client, Reason.REVOKED, "revoked while the round was open")
        try:
            self._check_there_are_enough(collected)
        except RoundFailedError as error:
            server.store.save(self._round, record=self._record(collected, failure=str(error)))
            return
        closed = {"round": collected.number, "accepted": list(collected.accepted)}
        self._round = server.store.save(
            collected.close(),
            clients=collected.cohort,
            record=self._record(collected),
            events=[("round.closed", closed)],
        )

    def _check_room(self) -> None:
        """Checks that the disk has room for twice what may come, before anybody has worked for nothing."""
        server = self._server
        needed = 2 * len(self._round.cohort) * server.schema.data_bytes
        if (free := shutil.disk_usage(server.directory).free) < needed:
            raise OutputError(
                f"{server.directory}: the updates of round {self._round.number} need up to {needed} bytes, and {free} "
                "are free. Nothing was asked yet: make room and start the server again"
            )

    def _check_there_are_enough(self, collected: Round) -> None:
        settings, there = self._server.settings, len(collected.accepted)
        if not there:
            raise RoundFailedError(f"round {collected.number} has no accepted update")
        if there < settings.quorum:
            raise RoundFailedError(
                f"round {collected.number} has {there} accepted updates, its quorum is {settings.quorum}: it stays "
                "open, and asks the others again when the server is started again"
            )
        if settings.rule.aggregation is Rule.MULTI_KRUM:
            try:
                check_clients(there, settings.assumed_attackers)
            except RoundFailedError as error:
                raise RoundFailedError(f"round {collected.number}: {error}") from error

    def _aggregate(self) -> None:
        server, aggregation = self._server, Aggregation(self._server, self._round)
        outcome = aggregation.outcome()
        sha256 = server.store.blobs.put(encode_tensors(outcome.state.adapter))
        seconds = server.exchange.clock() - self._started
        record = server.store.record(self._round.number).model_copy(
            update={
                "train_loss": outcome.train_loss,
                "client_shares": outcome.client_shares,
                "residual_share": outcome.residual_share,
                "flags": aggregation.flags(),
                "seconds": seconds,
                "aggregate_seconds": max(seconds - (server.exchange.waited_seconds - self._waited_before), 0.0),
            }
        )
        events = [("update.flagged", {"round": self._round.number, "flags": record.flags})] if record.flags else []
        self._round = server.store.save(self._round.aggregate(sha256), record=record, events=events)

    def _commit_or_abort(self) -> None:
        """Makes the new adapter the federation's, unless it is no adapter or the canary falls."""
        server, sha256 = self._server, self._round.aggregate_sha256 or ""
        adapter, loss, fault = server.adapter_as_it_is(sha256), None, None
        if not is_finite(adapter):
            fault = "the aggregate holds NaN or infinity"
        elif server.canary is not None:
            loss = server.canary.measure(adapter)
            fault = server.canary.fault(loss, self._base_loss())
        record = server.store.record(self._round.number).model_copy(
            update={
                "canary_loss": loss,
                "aborted": fault,
                "adapter_sha256": sha256 if fault is None else self._round.base_sha256,
            }
        )
        body = {"round": self._round.number, "adapter": sha256}
        if fault is None:
            self._round = server.store.save(self._round.commit(), record=record, events=[("round.committed", body)])
        else:
            body["reason"] = fault
            self._round = server.store.save(self._round.abort(fault), record=record, events=[("round.aborted", body)])

    def _base_loss(self) -> float:
        """Returns the canary's loss of the round's base: of the round before, if that measured it."""
        server, before = self._server, self._server.store.round(self._round.number - 1)
        if server.canary is None:
            raise ValueError("no canary")
        measured = (
            server.store.record(before.number).canary_loss if before and before.state is RoundState.COMMITTED else None
        )
        return server.canary.measure(server.adapter(self._round.base_sha256)) if measured is None else measured

    def _record(self, collected: Round, *, failure: str | None = None) -> RoundRecord:
        accepted = {} if failure else collected.accepted
        statements = {client: stated_update(answer.envelope) for client, answer in accepted.items()}
        seconds = self._server.exchange.clock() - self._started
        return RoundRecord(
            round=collected.number,
            clients=tuple(accepted),
            rejected=(*map(_turned_away, self._turned_away), *_refused(collected)),
            train_loss=None,
            seconds=seconds,
            aggregate_seconds=max(seconds - (self._server.exchange.waited_seconds - self._waited_before), 0.0),
            bytes_down=self._bytes_down,
            bytes_up=sum(answer.size_bytes for answer in collected.answers),
            failure=failure,
            privacy={client: said.privacy for client, said in statements.items() if said.privacy is not None},
        )


def conclude(server: Server, current: Round) -> None:
    """Tells the audit log and, of a round that is over, everybody who took part; what it leaves is swept.

    Done again after a crash, it does what is left of it.
    """
    is_told = not current.state.is_over or server.store.has_receipts(current.number)
    if not is_told:
        refusals = server.store.hard_refusals()
        for client in suspended(refusals):
            if current.number in refusals[client]:
                body = {"round": current.number, "client": client}
                server.store.save(current, events=[("organisation.suspended", body)])
    head = publish_events(server.store, server.directory, server.settings)
    if not is_told:
        server.store.save_receipts(current.number, make_receipts(server, current, head))
        server.store.keep_needed_blobs()


def _turned_away(error: UpdateRejectedError) -> RejectedClient:
    return RejectedClient(
        client=error.client, reason=error.reason, detail=f"expected {error.expected}, got {error.got}"
    )


def _refused(collected: Round) -> list[RejectedClient]:
    outcomes = [collected.outcome(client) for client in collected.cohort]
    return [
        RejectedClient(client=outcome.client, reason=outcome.code, detail=outcome.detail)
        for outcome in outcomes
        if outcome is not None and outcome.code is not None
    ]
