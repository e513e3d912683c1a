"""A server of rounds that dies and is started again, with clients that remember nothing but what was said to them."""

import multiprocessing
import os
import random
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from fl_server.exchange import Exchange
from fl_server.grid import InProcessGrid
from fl_server.owner import read_rounds, read_settings
from fl_server.reception import stated_update
from fl_server.round_state import RoundState
from fl_server.round_store import open_round_store
from fl_server.rounds import conduct_rounds
from scaleot_core.federation.messages import Receipt, decode_statement, digest_of
from scaleot_core.federation.signing import claimed
from scaleot_core.progress import SilentReporter
from tests.support.grids import Clock, stepping_client_app, stepping_configs
from tests.support.power_cut import PowerCut

FORK = multiprocessing.get_context("fork")
_WRITE = os.write  # as it is: what has left the building has left


class TalkativeGrid(InProcessGrid):
    """An in-process grid whose clients write down every receipt that they are given, where no crash touches it."""

    def __init__(self, clients: int, said: Path) -> None:
        super().__init__(stepping_client_app(), stepping_configs(clients))
        self._said = said

    def push_messages(self, messages: Any) -> Any:
        messages = list(messages)
        for message in messages:
            record = message.content["statement"]
            for receipt in record.get("receipts", []):
                descriptor = os.open(self._said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                _WRITE(descriptor, claimed(receipt) + b"\n")
                os.close(descriptor)
        return super().push_messages(messages)


def live(directory: Path, said: Path) -> None:
    """Conducts the rounds from where they stand to their end."""
    clock, clients = Clock(), read_settings(directory).clients
    exchange = Exchange(TalkativeGrid(clients, said), clock=clock, sleep=clock.sleep)
    conduct_rounds(exchange, directory, SilentReporter())


def live_until(directory: Path, said: Path, moment: int, loss: str) -> None:
    """Lives until the ``moment``-th call that changes the disk; ``loss`` is what a power cut takes with it."""
    draw = random.Random(moment)
    choices: dict[str, Callable[[], bool]] = {
        "nothing": lambda: False,
        "everything": lambda: True,
        "something": lambda: draw.random() < 0.5,
    }
    cut = PowerCut(moment, choices[loss], draw)
    cut.install()
    cut.install_for_sqlite()
    live(directory, said)


def run(work: Callable[..., None], *arguments: Any) -> int:
    """Runs work in a process of its own and returns its exit code."""
    process: ForkProcess = FORK.Process(target=work, args=arguments)
    process.start()
    process.join()
    return process.exitcode or 0


def check_what_was_said(directory: Path, said: Path) -> None:
    """Checks that every update that a client was told has been accepted is in its round, and in no other."""
    receipts = [decode_statement(line, Receipt) for line in said.read_bytes().splitlines()] if said.exists() else []
    settings = read_settings(directory)
    with open_round_store(directory, settings.run) as store:
        for receipt in receipts:
            current = store.round(receipt.round)
            assert current is not None and current.state is RoundState.COMMITTED
            assert (receipt.status, receipt.code) == ("accepted", None)
            assert current.accepted[receipt.client].update_sha256 == receipt.update_sha256
            assert stated_update(current.accepted[receipt.client].envelope).round == receipt.round
        newest = store.newest()
        assert newest is not None
        if newest.state is RoundState.OPEN:
            for answer in newest.accepted.values():
                assert digest_of(store.blobs.get(answer.update_sha256 or "")) == answer.update_sha256


def check_the_end(directory: Path, said: Path, undisturbed: bytes) -> None:
    """Checks that the run has ended as one that nothing disturbed, and that everybody has every receipt."""
    settings, records = read_settings(directory), read_rounds(directory)
    assert (directory / "adapter.safetensors").read_bytes() == undisturbed
    assert [record.round for record in records] == list(range(1, settings.rounds + 1))
    assert all(len(record.clients) == settings.clients and not record.rejected for record in records)
    check_what_was_said(directory, said)
    lines = {decode_statement(line, Receipt) for line in said.read_bytes().splitlines()}
    assert {(one.round, one.client) for one in lines} == {
        (number, f"clinic-{client}") for number in range(1, settings.rounds + 1) for client in range(settings.clients)
    }
    assert list(directory.rglob(".*.partial")) == []
    assert len(list((directory / "blobs").iterdir())) <= 3, "the last adapter and the two before"
