"""Acceptance case F08: clocks that are ten minutes off, stand at 1970, or jump.

What the owner signed has a day on which it ends, a node's signature has a minute, and a round's deadline hangs on no
clock that can be set. A wrong clock is named, with what to do, or changes nothing.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from fl_clients.patient_source import PatientSource
from fl_clients.repository import newest_manifest
from fl_clients.sources import FolderSource
from fl_server import collection, round_steps, rounds
from fl_server.edge import Gate, RateLimit
from fl_server.exchange import Exchange
from fl_server.owner import read_rounds
from fl_server.rounds import conduct_rounds
from fl_server.run_key import read_run_voice
from scaleot_core.bundle.tls_files import read_tls_files
from scaleot_core.errors import InputError, ScaleOTError, VerificationError
from scaleot_core.federation.signing import verify_run_certificate
from scaleot_core.progress import SilentReporter
from tests.fl_server.test_edge import NODE, public, request, signed
from tests.support.certificates import Authority
from tests.support.grids import owner_key, set_stage
from tests.support.owner_homes import new_data_owner_home, new_owner_home, owner_of, publish_small_version

TEN_MINUTES = timedelta(minutes=10)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DEADLINE_SECONDS = 2.0


def now() -> datetime:
    return datetime.now(UTC)


def repository(root: Path) -> Callable[[datetime], object]:
    owner, home = new_owner_home(root / "owner"), root / "home"
    publish_small_version(owner)
    new_data_owner_home(owner, home)

    def look(at: datetime) -> object:
        source = PatientSource(FolderSource(owner / "repository"), deadline_seconds=10)
        return newest_manifest(source, home, owner=owner_of(owner).public, now=at)

    return look


def certificate(root: Path) -> Callable[[datetime], object]:
    tls = Authority(root / "authority").issue("clinic-a")
    return lambda at: read_tls_files(tls, now=at)


def run_certificate(root: Path) -> Callable[[datetime], object]:
    set_stage(root)
    voice = read_run_voice(root)
    return lambda at: verify_run_certificate(voice.certificate, owner_key().public, now=at)


@pytest.mark.parametrize("make", [repository, certificate, run_certificate])
@pytest.mark.parametrize("ahead", [TEN_MINUTES, -TEN_MINUTES])
def test_f08_a_clock_ten_minutes_off_changes_nothing_that_has_days(
    tmp_path: Path, make: Callable[[Path], Callable[[datetime], object]], ahead: timedelta
) -> None:
    look = make(tmp_path)
    look(now() + ahead)
    look(now())


@pytest.mark.parametrize(
    ("make", "at", "said"),
    [
        (repository, EPOCH, "set the clock"),
        (repository, now() + timedelta(days=3_650), "bundle.expired"),
        (certificate, EPOCH, "set the clock"),
        (certificate, now() + timedelta(days=3_650), "set the clock"),
        (run_certificate, now() + timedelta(days=3_650), "certificate.expired"),
    ],
)
def test_f08_a_clock_of_1970_or_of_ten_years_on_is_named(
    tmp_path: Path, make: Callable[[Path], Callable[[datetime], object]], at: datetime, said: str
) -> None:
    look = make(tmp_path)
    with pytest.raises((InputError, VerificationError), match=said) as raised:
        look(at)
    assert f"{at:%Y}" in str(raised.value), "it says what the clock shows"
    assert isinstance(raised.value, ScaleOTError)
    look(now())


@pytest.mark.parametrize("ahead", [TEN_MINUTES, -TEN_MINUTES, EPOCH - now()])
def test_f08_a_node_whose_clock_is_wrong_is_told_so_and_a_stranger_is_not(ahead: timedelta) -> None:
    gate = Gate(lambda: {public(NODE, Encoding.DER): "clinic"}, RateLimit(1000.0), 1_000)
    refusal = gate.refuse(request(signed(NODE, now() + ahead)), now())
    assert refusal is not None and refusal.status_code == 401
    assert bytes(refusal.body).startswith(b"E_CLOCK: a signature of ")
    assert gate.refuse(request(signed(NODE, now())), now()) is None
    forged = signed(NODE, now() + ahead) | {"flwr-timestamp": now().isoformat()}
    refusal = gate.refuse(request(forged), now())
    assert refusal is not None and b"E_CLOCK" not in bytes(refusal.body)


class JumpingClock(datetime):
    """The wall clock of a machine that cannot keep the time: ten minutes off, at 1970, ten years on, by turns."""

    _offsets = (TEN_MINUTES, -TEN_MINUTES, EPOCH - now(), timedelta(days=3_650), timedelta(0))
    _turn = 0

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        cls._turn += 1
        return datetime.now(tz) + cls._offsets[cls._turn % len(cls._offsets)]


@pytest.fixture
def jumping_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rounds, round_steps, collection):
        monkeypatch.setattr(module, "datetime", JumpingClock)


@pytest.mark.usefixtures("jumping_clock")
def test_f08_a_round_keeps_its_deadline_to_the_second_while_the_wall_clock_jumps(tmp_path: Path) -> None:
    stage = set_stage(tmp_path, faults={2: lambda _: None}, round_deadline_seconds=DEADLINE_SECONDS)
    started = time.monotonic()
    exchange = Exchange(stage.grid, clock=time.monotonic, sleep=time.sleep)
    conduct_rounds(exchange, tmp_path, SilentReporter())
    seconds = time.monotonic() - started
    (record,) = read_rounds(tmp_path)
    assert record.clients == ("clinic-0", "clinic-1")
    assert [(one.client, one.reason) for one in record.rejected] == [("clinic-2", "E_TIMEOUT")]
    assert DEADLINE_SECONDS <= record.seconds <= seconds < DEADLINE_SECONDS + 5
    assert abs(record.seconds - record.aggregate_seconds - DEADLINE_SECONDS) < 1


@pytest.mark.usefixtures("jumping_clock")
def test_f08_rounds_come_to_the_same_adapter_whatever_the_wall_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("jumping", "steady"):
        (tmp_path / name).mkdir()
        stage = set_stage(tmp_path / name, rounds=3)
        conduct_rounds(stage.exchange, tmp_path / name, SilentReporter())
        monkeypatch.undo()
    first, second = ((tmp_path / name / "adapter.safetensors").read_bytes() for name in ("jumping", "steady"))
    assert first == second
