"""S22: nothing of private text and private keys in what a run with failures leaves at the server, its mirror, its logs
or on the wire; the data key of the emulator in its own file alone.

Here and in ``test_static_s22_artefacts.py``, which looks at what is shipped. The run between processes:
``pytest -m slow tests/attacks/test_artefacts_s22.py``.
"""

import gzip
import json
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from secrets import token_bytes

import pytest
from flwr.app import Message
from flwr.common.serde import message_to_proto

from fl_clients.client_app import app
from fl_server.exchange import Exchange
from fl_server.grid import InProcessGrid
from fl_server.owner import read_rounds
from fl_server.rounds import conduct_rounds
from scaleot_core.bundle import load_data_key
from scaleot_core.progress import LogReporter
from tests.support.deployments import Deployed, build_deployment
from tests.support.federations import build_federation
from tests.support.leaks import data_owner_secrets, files_below, leaks, spellings
from tests.support.running import is_in_round, kill, run_status, running, wait_for


def canary_of(home: Path) -> str:
    return f"canary of the patients of {home.name}"


@pytest.mark.parametrize("before", [b"", b"a", b"ab", b"abc"])
@pytest.mark.parametrize("encode", [bytes, b64encode, urlsafe_b64encode, lambda held: held.hex().encode()])
def test_s22_the_search_finds_a_secret_in_every_spelling_wherever_it_begins(before: bytes, encode) -> None:  # type: ignore[no-untyped-def]
    secret = token_bytes(32)
    assert leaks({"it": secret}, {"here": encode(before + secret + b"after")}) == {("it", "here")}
    assert leaks({"it": secret}, {"here": encode(before + token_bytes(64))}) == set()
    assert all(len(spelling) > 20 for spelling in spellings(secret))


class TappedGrid(InProcessGrid):
    """Keeps every reply as it goes over the wire, inside of TLS."""

    def __init__(self, homes: Iterable[Path]) -> None:
        super().__init__(app, [{"data-owner": str(home)} for home in homes])
        self.replies: list[bytes] = []

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = list(super().pull_messages(message_ids))
        self.replies += [message_to_proto(reply).SerializeToString() for reply in replies]
        return replies


def write_canaries(data: Path, canary: str, *, is_broken: bool) -> None:
    """Adds records with the canary; broken ones are such that the reader would like to quote them."""
    opened = gzip.open if data.suffix == ".gz" else open
    with opened(data, "rt", encoding="utf-8") as file:
        first = json.loads(file.readline())
    field = "text" if "text" in first else "context"
    with opened(data, "at", encoding="utf-8") as file:
        file.writelines(json.dumps({**first, field: f"{canary} {number}"}) + "\n" for number in range(4))
        if is_broken:
            file.write(f'{{"{field}": "{canary}", {canary}\n')


def test_s22_what_clients_send_and_the_server_keeps_and_prints_holds_no_private_text_and_no_private_key(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    federation = build_federation(tmp_path, clients=4, quorum=2)
    homes = federation.data_owner_directories
    canaries = {f"{home.name}: text": canary_of(home).encode() for home in homes}
    for number, home in enumerate(homes):
        write_canaries(home / "train.jsonl.gz", canary_of(home), is_broken=number == 2)
    secrets = canaries | {name: key for home in homes for name, key in data_owner_secrets(home).items()}
    (homes[3] / "identity.key").write_bytes((homes[3] / "signing.key").read_bytes())  # it opens nothing any more
    grid = TappedGrid(homes)
    conduct_rounds(Exchange(grid, clock=time.monotonic, sleep=time.sleep), federation.owner_directory, LogReporter())
    records = read_rounds(federation.owner_directory)
    assert [record.clients for record in records] == [("clinic-0", "clinic-1")] * 2
    assert {who.client for who in records[0].rejected} == {"clinic-2", "clinic-3"}
    printed = capfd.readouterr()
    wire = {f"reply {number}": reply for number, reply in enumerate(grid.replies)}
    assert len(wire) >= 8
    kept = files_below(federation.owner_directory)
    assert leaks(secrets, wire | kept | {"out": printed.out.encode(), "err": printed.err.encode()}) == set()
    intact = data_owner_secrets(homes[0])
    assert {name for name, _ in leaks(intact, files_below(homes[0]))} == set(intact), "the search would find them"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_s22_a_deployed_federation_with_failures_leaves_no_secret_where_it_does_not_belong(tmp_path: Path) -> None:
    """A SuperNode is killed in mid-run, and one data owner's text cannot be read and would like to be quoted."""
    deployed = build_deployment(tmp_path, "federation.rounds=2", "federation.quorum=2")
    owner, homes = deployed.owner_home, deployed.data_owner_homes
    canaries = {f"{home.name}: text": canary_of(home).encode() for home in homes}
    for number, home in enumerate(homes):
        write_canaries(home / "train.jsonl", canary_of(home), is_broken=number == 2)
    run_with_failures(deployed)
    status = run_status(deployed)
    assert status is not None and status.is_finished
    check_what_is_left(owner, homes, canaries)


def check_what_is_left(owner: Path, homes: Sequence[Path], canaries: Mapping[str, bytes]) -> None:
    private = {name: key for home in homes for name, key in data_owner_secrets(home).items()}
    kept = files_below(owner)
    for expected in ("rounds.db", "state.db", "audit.jsonl", "rounds.log", "superlink.log", "edge.log"):
        assert any(Path(where).name == expected for where in kept), f"{expected} was looked through"
    assert leaks(canaries | private, kept) == set()

    (data_key_file,) = owner.glob("sealed/*/data.key")
    data_key = {"data key": load_data_key(data_key_file).secret}
    assert leaks(data_key, kept) == {("data key", str(data_key_file))}
    theirs = files_below(*homes)
    assert leaks(data_key, theirs) == set(), "a data owner unwraps it in memory, and keeps the grant"
    for number, home in enumerate(homes):
        others = {where: held for where, held in theirs.items() if not Path(where).is_relative_to(home)}
        assert leaks(data_owner_secrets(home) | {"text": canary_of(home).encode()}, others) == set(), number
    assert {name for name, _ in leaks(canaries | private, theirs)} == {*canaries, *private}, "it would find them"


def run_with_failures(deployed: Deployed) -> None:
    node = deployed.data_owner_homes[1] / "flower" / "node"
    with running(deployed) as server:
        wait_for(lambda: is_in_round(deployed, 1), 600, "round 1")
        kill(node, "flower-supernode")
        assert server.wait(900) == 0
