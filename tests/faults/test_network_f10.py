"""F10: a bundle is fetched over a line that is slow and far away, is cut, falls silent, repeats or spoils bytes.

The line is a TCP proxy before the real service, with mutual TLS through it. The long ones:
``pytest -m slow tests/faults/test_network_f10.py``.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path

import pytest

from fl_clients.fetch import FetchedBundle
from fl_clients.grpc_source import grpc_source
from scaleot_core.bundle.manifest import BLOCK_BYTES
from scaleot_core.errors import FetchError
from tests.support.bad_network import Break, Line, bad_network
from tests.support.distribution_server import server_process
from tests.support.fetching import LARGE_FILES, Parties, parties

MIB = 1024 * 1024
RATE = 1e6
"""Bytes per second: 8 Mbit/s."""
HALF_OPEN_SECONDS = 40.0
SMALL_FILES = {**LARGE_FILES, "emulator.safetensors": LARGE_FILES["emulator.safetensors"][: 4 * MIB]}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Parties:
    return parties(tmp_path_factory.mktemp("small"), SMALL_FILES)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Parties:
    return parties(tmp_path_factory.mktemp("large"), LARGE_FILES)


@contextmanager
def served_over(line: Line, two: Parties) -> Iterator[str]:
    """Yields the address that leads over the line to the service of a bundle."""
    with server_process("127.0.0.1:0", two.server, two.scene.path) as (_, port), bad_network(port, line):
        yield f"127.0.0.1:{line.port}"


def fetched_over(line: Line, two: Parties, own: Path, *, deadline_seconds: float = 120.0) -> FetchedBundle:
    with served_over(line, two) as address, grpc_source(address, two.clinic) as source:
        return two.fetch(source, own=own, deadline_seconds=deadline_seconds)


@pytest.mark.parametrize(
    "broken", [Break.CUT, Break.DUPLICATE, Break.CORRUPT], ids=["cut", "duplicate bytes", "corrupt bytes"]
)
@pytest.mark.parametrize("after", [0, 100_000, 3 * MIB], ids=["in the handshake", "at the start", "in mid-stream"])
def test_f10_a_line_that_breaks_costs_no_more_than_what_was_under_way(
    small: Parties, tmp_path: Path, broken: Break, after: int
) -> None:
    line = Line(breaks=broken, breaks_after=iter((after,)))
    fetched = fetched_over(line, small, tmp_path)
    assert len(line.broken_at) == 1 and len(line.connected_at) >= 2, "it broke, and another was opened"
    assert fetched.moved_bytes <= fetched.size_bytes + BLOCK_BYTES
    assert small.open(fetched.path) == SMALL_FILES


@pytest.mark.parametrize("broken", [Break.CUT, Break.DUPLICATE, Break.CORRUPT])
def test_f10_a_line_that_always_breaks_gives_one_clear_error_and_keeps_what_came(
    small: Parties, tmp_path: Path, broken: Break
) -> None:
    line = Line(breaks=broken, breaks_after=chain((2 * MIB,), repeat(0)))
    expected = r"not fetched within 4 seconds\. What came is kept.*Last failure: distribution service 127\.0\.0\.1"
    with pytest.raises(FetchError, match=expected):
        fetched_over(line, small, tmp_path, deadline_seconds=4.0)
    kept = [path for path in tmp_path.rglob("partial/*") if path.stat().st_size]
    assert kept
    fetched = fetched_over(Line(), small, tmp_path)
    assert fetched.moved_bytes < fetched.size_bytes
    assert small.open(fetched.path) == SMALL_FILES


def test_f10_eight_megabit_and_200_milliseconds_are_enough(small: Parties, tmp_path: Path) -> None:
    line = Line(bytes_per_second=RATE, latency_seconds=0.1)
    fetched = fetched_over(line, small, tmp_path)
    assert small.open(fetched.path) == SMALL_FILES


@pytest.mark.slow
def test_f10_four_fifths_of_eight_megabit_are_used_at_200_milliseconds(large: Parties, tmp_path: Path) -> None:
    line = Line(bytes_per_second=RATE, latency_seconds=0.1)
    with served_over(line, large) as address, grpc_source(address, large.clinic) as source:
        started = time.monotonic()
        fetched = large.fetch(source, own=tmp_path, deadline_seconds=120.0)
        seconds = time.monotonic() - started
    assert fetched.size_bytes / seconds >= 0.8 * RATE
    assert large.open(fetched.path) == LARGE_FILES


@pytest.mark.slow
def test_f10_a_connection_that_is_half_open_is_noticed_by_both_sides_within_40_seconds(
    small: Parties, tmp_path: Path
) -> None:
    line = Line(breaks=Break.SILENCE, breaks_after=iter((3 * MIB,)))
    fetched = fetched_over(line, small, tmp_path)
    assert small.open(fetched.path) == SMALL_FILES
    (fell_silent,), (_, connected_again, *_) = line.broken_at, line.connected_at
    assert connected_again - fell_silent <= HALF_OPEN_SECONDS
    assert line.left_by_service_at[0] - fell_silent <= HALF_OPEN_SECONDS
