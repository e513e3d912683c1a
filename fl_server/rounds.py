"""The rounds of one run, from wherever its durable state stands to the last one."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fl_server.blob_store import Quarantine
from fl_server.canary import Canary, emulator_canary
from fl_server.collection import new_assignment
from fl_server.exchange import Exchange
from fl_server.membership import MEMBERS_FILE, Membership, read_members
from fl_server.owner import (
    INITIAL_ADAPTER_FILE,
    OwnerRunSettings,
    RoundRecord,
    read_adapter,
    read_settings,
    save_rounds,
)
from fl_server.receipts import deliver_receipts
from fl_server.registry import Registry
from fl_server.roster import Roster
from fl_server.round_state import Round
from fl_server.round_steps import RoundSteps, conclude
from fl_server.round_store import RoundStore, open_round_store
from fl_server.run_key import read_run_voice
from fl_server.server import Server
from fl_server.suspension import suspended
from scaleot_core.errors import RoundFailedError, UpdateRejectedError
from scaleot_core.federation.cohort import select_cohort
from scaleot_core.federation.rules import check_aggregation
from scaleot_core.federation.validation import AdapterSchema, encode_tensors
from scaleot_core.progress import Reporter


def conduct_rounds(exchange: Exchange, directory: Path, reporter: Reporter, *, canary: Canary | None = None) -> None:
    """Runs the rounds of the run that ``directory`` describes, from where its durable state stands.

    Adapter and records are saved after each round. A client that fails, is late or sends what cannot be believed is
    refused with a reason, and the round goes on. Whenever this dies, started again it goes on with the same round, the
    same nonces and every update that was acknowledged. ``canary`` stands in for that of the run's settings.

    Raises:
        InputError: the run's files are missing or faulty, or another process conducts the run.
        OutputError: the disk is full or cannot be written; nothing that was acknowledged is lost.
        StoreError: the durable state is damaged.
        RoundFailedError: a round has too few accepted updates at its deadline; it stays open with what it has, and
            what was reached before it is saved.
    """
    settings = read_settings(directory)
    check_aggregation(settings.rule, settings.adapter, clients_per_round=settings.clients_per_round)
    initial = read_adapter(directory / INITIAL_ADAPTER_FILE)
    with open_round_store(directory, settings.run) as store, _measuring(settings, directory, canary) as measure:
        rounds_left = settings.rounds - _rounds_done(store)
        with reporter.stage("rounds", steps=rounds_left * settings.clients_per_round) as stage:
            voice, membership = read_run_voice(directory), membership_of(directory, settings)
            server = Server(
                directory=directory,
                settings=settings,
                exchange=exchange,
                roster=Roster(exchange, voice, membership, settings.run),
                membership=membership,
                voice=voice,
                store=store,
                quarantine=Quarantine(directory),
                schema=AdapterSchema.of(initial),
                canary=measure,
                stage=stage,
            )
            _go_on(server, encode_tensors(initial))
            deliver_receipts(server)


def membership_of(directory: Path, settings: OwnerRunSettings) -> Membership:
    """Returns the run's organisations: of the registry where there is one, else of ``members.json``.

    Raises:
        InputError: the file is missing or malformed.
        ChainError: the registry is damaged.
    """
    if settings.registry is None:
        return read_members(directory / MEMBERS_FILE)
    return Registry(directory / settings.registry)


def raise_if_failed(record: RoundRecord) -> None:
    """Raises the error of a round that could not close.

    Raises:
        RoundFailedError: too few updates were accepted; it lists the reason of every client that was refused.
    """
    if record.failure:
        reasons = "".join(f"\n  - {who.client}: {who.reason}, {who.detail}" for who in record.rejected)
        nobody = "" if record.bytes_down else ": no client is connected"
        raise RoundFailedError(f"{record.failure}{reasons or nobody}")


def _go_on(server: Server, initial: bytes) -> None:
    """Takes the newest round to its end, and then every further one."""
    current = server.store.newest() or _open(server, 1, server.store.blobs.put(initial))
    if current.state.is_over:  # a crash may have come before its outputs and receipts
        conclude(server, current)
        _export(server, current)
    wanted = server.settings.clients
    while not current.state.is_over or current.number < server.settings.rounds:
        if current.state.is_over:
            current = _open(server, current.number + 1, current.adapter_sha256)
        current, turned_away = _gather(server, current, wanted)
        current = RoundSteps(server, current, turned_away).go()
        conclude(server, current)
        _export(server, current)
        record = server.store.record(current.number)
        raise_if_failed(record)
        server.stage.advance(0, loss=record.train_loss)
        wanted = server.settings.quorum


def _open(server: Server, number: int, base_sha256: str) -> Round:
    """Opens the next round. Nobody is asked yet: if it dies here, that is done again."""
    now = datetime.now(UTC)
    deadline = now + timedelta(seconds=server.settings.round_deadline_seconds)
    opened = Round(number, base_sha256, opened_at=now, deadline=deadline)
    return server.store.save(opened, events=[("round.opened", {"round": number, "base": base_sha256})])


def _gather(server: Server, current: Round, wanted: int) -> tuple[Round, tuple[UpdateRejectedError, ...]]:
    """Waits a bounded time for clients, and draws the cohort of a round that has none.

    Returns the round, and whom the roster turned away.
    """
    settings, exchange, roster = server.settings, server.exchange, server.roster
    deadline = exchange.clock() + min(settings.node_wait_seconds, settings.round_deadline_seconds)
    while len(exchange.connected_nodes()) < wanted and exchange.clock() < deadline:
        exchange.pause()
    exchange.drop_late_replies()
    turned_away = roster.begin_round(current.number, deadline=deadline)
    while len(idle := _askable(server)) < settings.quorum and exchange.clock() < deadline:
        exchange.pause()
        exchange.drop_late_replies()
        roster.look(current.number, deadline=deadline)
    if current.cohort or current.state.is_over or not idle:
        return current, turned_away
    size = math.ceil(settings.clients_per_round * settings.over_selection)
    for client in select_cohort(idle, size=size, seed=settings.seed, round_number=current.number):
        current = current.assign(new_assignment(current, client))
    return server.store.save(current, clients=current.cohort), turned_away


def _askable(server: Server) -> list[str]:
    left_out = suspended(server.store.hard_refusals())
    return [client for client in server.roster.idle_clients() if client not in left_out]


def _export(server: Server, current: Round) -> None:
    """Writes the outputs for people: copies of what is stored."""
    save_rounds(server.directory, server.settings.run, server.adapter(current.adapter_sha256), server.store.records())


def _rounds_done(store: RoundStore) -> int:
    newest = store.newest()
    return 0 if newest is None else newest.number - (not newest.state.is_over)


@contextmanager
def _measuring(settings: OwnerRunSettings, directory: Path, given: Canary | None) -> Iterator[Canary | None]:
    if given is not None or settings.canary is None:
        yield given
    else:
        with emulator_canary(settings.canary, settings.adapter, directory) as canary:
            yield canary
