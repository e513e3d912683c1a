"""A service's memory is that of the streams it allows, however many organisations ask."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from fl_clients.fetch import DEFAULT_STREAMS
from fl_clients.grpc_source import grpc_source
from fl_clients.patient_source import PatientSource
from fl_server.bundle_index import read_manifest
from fl_server.memory import peak_memory_bytes
from scaleot_core.bundle.manifest import BLOCK_BYTES, SealedObject
from scaleot_core.bundle.verify import read_bundle
from tests.support.distribution_server import server_process
from tests.support.fetching import Parties, parties

SIZE_MIB = 64
CLIENTS = (4, 16, 64)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Parties:
    return parties(tmp_path_factory.mktemp("memory"), {"emulator.safetensors": bytes(SIZE_MIB << 20)})


def read_all(source: PatientSource, sealed: SealedObject) -> int:
    """Reads an object as a fetch does, by blocks in parallel, and keeps none of it."""

    def read(index: int) -> int:
        start = index * BLOCK_BYTES
        return sum(map(len, source.read_range(sealed.name, start, start + sealed.block_size(index))))

    with ThreadPoolExecutor(DEFAULT_STREAMS) as pool:
        return sum(pool.map(read, range(len(sealed.blocks))))


def peak_mib_of_the_server(two: Parties, clients: int) -> float:
    """Starts a service and has so many organisations, each with its own certificate, read everything at once."""
    (sealed,) = read_manifest(read_bundle(two.scene.path).envelope)[1].objects
    with server_process("127.0.0.1:0", two.server, two.scene.path) as (process, port), ExitStack() as stack:
        sources = [
            PatientSource(
                stack.enter_context(grpc_source(f"127.0.0.1:{port}", two.authority.issue(f"clinic-{number}"))),
                deadline_seconds=500,
            )
            for number in range(clients)
        ]
        with ThreadPoolExecutor(clients) as pool:
            for moved in pool.map(lambda source: read_all(source, sealed), sources):
                assert moved == sealed.size
        stack.close()
        assert process.stdin and process.stdout
        process.stdin.close()
        return float(process.stdout.readline().split()[1])


@pytest.mark.slow
def test_a_services_memory_is_flat_from_4_to_64_clients(two: Parties, capsys: pytest.CaptureFixture[str]) -> None:
    peaks = {}
    for clients in CLIENTS:
        started = time.monotonic()
        peaks[clients] = peak_mib_of_the_server(two, clients)
        with capsys.disabled():
            sys.stdout.write(
                f"\n{clients} clients of {SIZE_MIB} MiB each: server peak {peaks[clients]:.0f} MiB, "
                f"{time.monotonic() - started:.0f} s (clients' own process {peak_memory_bytes() / 1024**2:.0f} MiB)"
            )
    assert max(peaks.values()) <= 1.1 * min(peaks.values()), peaks
    assert max(peaks.values()) < 256
