"""The rounds of one run: whom the server asks, what it believes, and what it keeps after each."""

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_server.exchange import Exchange, Request
from fl_server.owner import (
    INITIAL_ADAPTER_FILE,
    OwnerRunSettings,
    RejectedClient,
    RoundRecord,
    read_adapter,
    read_settings,
    save_rounds,
)
from fl_server.roster import Roster
from scaleot_core.errors import RoundFailedError, UpdateRejectedError
from scaleot_core.federation.averaging import FederationState, RoundOutcome, advance
from scaleot_core.federation.cohort import select_cohort
from scaleot_core.federation.messages import Instructions, Payload, PrivateRelease, digest_of, encode_statement
from scaleot_core.federation.rules import check_aggregation
from scaleot_core.federation.validation import (
    AdapterUpdate,
    ExpectedUpdate,
    UnverifiedUpdate,
    encode_tensors,
    validate_update,
)
from scaleot_core.privacy.client_level import advance_with_noise
from scaleot_core.privacy.private_rounds import advance_by_scalars, expected_scalars, promised_event
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.progress import Reporter, Stage

TRAIN = "train"


@dataclass(frozen=True)
class Invitation:
    """A request to train, and what its reply must be bound to."""

    request: Request
    expected: ExpectedUpdate
    deadline: float


def conduct_rounds(exchange: Exchange, directory: Path, reporter: Reporter) -> None:
    """Runs every round of the run that ``directory`` describes; adapter and records are saved after each.

    A client that fails, is late or sends what cannot be believed is refused with a reason, and the round goes on.

    Raises:
        InputError: the run's files are missing or faulty.
        RoundFailedError: a round has no accepted update; what was reached before it is saved.
    """
    settings = read_settings(directory)
    check_aggregation(settings.rule, settings.adapter, clients_per_round=settings.clients_per_round)
    state = FederationState(0, read_adapter(directory / INITIAL_ADAPTER_FILE))
    roster = Roster(exchange, settings.run)
    records: list[RoundRecord] = []
    exchange.wait_for_nodes(settings.clients, deadline=exchange.clock() + settings.round_deadline_seconds)
    with reporter.stage("rounds", steps=settings.rounds * settings.clients_per_round) as stage:
        for _ in range(settings.rounds):
            outcome, record = run_round(exchange, roster, settings, state, stage, heads=ledger_heads(records))
            records.append(record)
            state = outcome.state if outcome else state
            save_rounds(directory, settings.run, state.adapter, tuple(records))
            raise_if_failed(record)
            stage.advance(0, loss=record.train_loss)


def ledger_heads(records: Iterable[RoundRecord]) -> dict[str, str]:
    """Returns the last head of each client's ledger that came with an accepted update."""
    return {client: said.ledger_head for record in records for client, said in record.privacy.items()}


def run_round(
    exchange: Exchange,
    roster: Roster,
    settings: OwnerRunSettings,
    state: FederationState,
    stage: Stage,
    *,
    heads: Mapping[str, str],
) -> tuple[RoundOutcome | None, RoundRecord]:
    """Runs the round after ``state``; with fewer accepted updates than the rule needs there is only the record.

    ``heads`` are those of ``ledger_heads``: each client is told its own, and finds out if its ledger went back.
    """
    started, waited = exchange.clock(), exchange.waited_seconds
    turned_away = roster.update(deadline=started + settings.round_deadline_seconds)
    replies = _Replies(exchange, stage, settings, rejected=list(turned_away))
    payloads, invitations = _invite(exchange, roster.idle_clients(), settings, state, heads)
    try:
        outcome = _advance(settings, state, replies.accepted(invitations))
        failure = None
    except RoundFailedError as error:
        outcome, failure = None, str(error)
    seconds = exchange.clock() - started
    record = RoundRecord(
        round=state.rounds_done + 1,
        clients=outcome.clients if outcome else (),
        rejected=tuple(
            RejectedClient(client=e.client, reason=e.reason, detail=f"expected {e.expected}, got {e.got}")
            for e in replies.rejected
        ),
        train_loss=outcome.train_loss if outcome else None,
        client_shares=outcome.client_shares if outcome else {},
        residual_share=outcome.residual_share if outcome else None,
        failure=failure,
        seconds=seconds,
        aggregate_seconds=max(seconds - (exchange.waited_seconds - waited), 0.0),
        bytes_down=sum(payload.size_bytes for payload in payloads),
        bytes_up=replies.bytes_up,
        privacy=replies.privacy,
    )
    return outcome, record


def raise_if_failed(record: RoundRecord) -> None:
    """Raises the error of a round that failed.

    Raises:
        RoundFailedError: too few updates were accepted; it lists the reason of every client that was refused.
    """
    if record.failure:
        reasons = "".join(f"\n  - {who.client}: {who.reason}, {who.detail}" for who in record.rejected)
        nobody = "" if record.bytes_down else ": no client is connected"
        raise RoundFailedError(f"{record.failure}{reasons or nobody}")


class _Replies:
    """The replies of one round: those that are accepted pass through, those that are not are written down."""

    def __init__(
        self, exchange: Exchange, stage: Stage, settings: OwnerRunSettings, rejected: list[UpdateRejectedError]
    ) -> None:
        self._exchange, self._stage, self._settings = exchange, stage, settings
        self.rejected = rejected
        self.bytes_up = 0
        self.privacy: dict[str, PrivateRelease] = {}

    def accepted(self, invitations: Sequence[Invitation]) -> Iterator[AdapterUpdate]:
        """Yields the updates in the invitations' order, each as soon as it and those before it are there."""
        for invitation in invitations:
            try:
                yield self._update(invitation)
            except UpdateRejectedError as error:
                self.rejected.append(error)
            self._stage.advance()

    def _update(self, invitation: Invitation) -> AdapterUpdate:
        payload = self._exchange.receive(invitation.request, invitation.deadline)
        self.bytes_up += payload.size_bytes
        unverified = UnverifiedUpdate(invitation.request.label, payload.statement, payload.tensors)
        update = validate_update(unverified, invitation.expected)
        asked = self._settings.asked_training
        if asked is not None and update.privacy is not None:
            promised_event(asked, update.client, update.privacy)
            self.privacy[update.client] = update.privacy
        return update


def _invite(
    exchange: Exchange,
    nodes: dict[str, int],
    settings: OwnerRunSettings,
    state: FederationState,
    heads: Mapping[str, str],
) -> tuple[list[Payload], list[Invitation]]:
    """Draws the cohort and sends every member its instructions and the global adapter."""
    round_number, base = state.rounds_done + 1, encode_tensors(state.adapter)
    cohort = select_cohort(nodes, size=settings.clients_per_round, seed=settings.seed, round_number=round_number)
    deadline = exchange.clock() + settings.round_deadline_seconds
    payloads, invitations = [], []
    for client in cohort:
        instructions = _instructions(settings, round_number, client, digest_of(base), heads.get(client))
        payload = Payload(encode_statement(instructions), base)
        request = exchange.send(
            nodes[client], payload, TRAIN, label=client, nonce=instructions.nonce, deadline=deadline
        )
        payloads.append(payload)
        invitations.append(Invitation(request, _expected(settings, instructions, state), deadline))
    return payloads, invitations


def _advance(settings: OwnerRunSettings, state: FederationState, updates: Iterator[AdapterUpdate]) -> RoundOutcome:
    asked = settings.asked_training
    if asked is not None and asked.privacy.sends_scalars:
        return advance_by_scalars(state, updates, asked)
    if settings.client_level is not None:
        return advance_with_noise(state, updates, settings.client_level, SecretSource())
    return advance(state, updates, settings.rule)


def _instructions(
    settings: OwnerRunSettings, round_number: int, client: str, base_sha256: str, ledger_head: str | None
) -> Instructions:
    return Instructions(
        run=settings.run,
        round=round_number,
        nonce=secrets.token_hex(32),
        client=client,
        base_sha256=base_sha256,
        bundle_digest=settings.bundle_digest,
        adapter=settings.adapter,
        local_steps=settings.local_steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        optimizer=settings.optimizer,
        max_tokens=settings.max_tokens,
        seed=settings.seed,
        privacy=settings.privacy,
        ledger_head=ledger_head,
    )


def _expected(settings: OwnerRunSettings, instructions: Instructions, state: FederationState) -> ExpectedUpdate:
    asked, scalars = settings.asked_training, None
    if asked is not None and asked.privacy.sends_scalars:
        adapter_size = sum(tensor.numel() for tensor in state.adapter.values())
        scalars = expected_scalars(asked, instructions.round, adapter_size)
    return ExpectedUpdate(
        run=settings.run,
        round_number=instructions.round,
        nonce=instructions.nonce,
        client=instructions.client,
        base=state.adapter,
        base_sha256=instructions.base_sha256,
        bundle_digest=settings.bundle_digest,
        max_examples=settings.max_examples,
        max_update_norm=settings.max_update_norm,
        is_private=asked is not None,
        scalars=scalars,
    )
