"""Acceptance case F01 and what F06 and F10 ask of a fetch: killed servers and clients, full disks, and memory."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fl_clients.fetch import PARTIAL_DIRECTORY
from fl_clients.grpc_source import grpc_source
from fl_clients.sources import FolderSource, HttpsSource, Source
from scaleot_core.bundle.distribution import MAX_PIECE_BYTES
from scaleot_core.bundle.key_files import save_verifying_key
from scaleot_core.bundle.manifest import BLOCK_BYTES, MANIFEST_FILE, OBJECTS_DIRECTORY
from scaleot_core.errors import OutputError, SourceInterruptedError
from tests.support.bundles import FILES
from tests.support.distribution_server import ROOT, server_process
from tests.support.fetching import LARGE_FILES, Parties, parties
from tests.support.https_files import https_server
from tests.support.kills import FORK

EMULATOR = "emulator.safetensors"

CLIENT = """
import datetime, json, pathlib, sys, time
from fl_clients.fetch import fetch_bundle
from fl_clients.grpc_source import grpc_source
from fl_clients.patient_source import PatientSource
from scaleot_core.bundle.key_files import load_verifying_key
from scaleot_core.bundle.tls_files import TlsFiles
from scaleot_core.bundle.verify import verify_manifest
from scaleot_core.progress import SilentReporter
from tests.support.bundles import NOW
from tests.support.distribution_server import peak_mib

address, certificate, private_key, authority, key, manifest, own = sys.argv[1:]
tls = TlsFiles(pathlib.Path(certificate), pathlib.Path(private_key), pathlib.Path(authority))
envelope = pathlib.Path(manifest).read_bytes()
signed = verify_manifest(envelope, load_verifying_key(pathlib.Path(key)), now=NOW)
before, start = peak_mib(), time.monotonic()
with grpc_source(address, tls) as source:
    patient = PatientSource(source, deadline_seconds=300)
    fetched = fetch_bundle(patient, pathlib.Path(own), envelope, signed, reporter=SilentReporter())
print(json.dumps({"growth_mib": peak_mib() - before, "seconds": time.monotonic() - start,
                  "size": fetched.size_bytes, "moved": fetched.moved_bytes}))
"""


def client_process(two: Parties, port: int, own: Path) -> "subprocess.Popen[str]":
    key = own.with_name(f"{own.name}.owner.pem")
    key.unlink(missing_ok=True)
    save_verifying_key(two.scene.owner.public, key)
    manifest = two.scene.path / MANIFEST_FILE
    paths = (two.clinic.certificate, two.clinic.private_key, two.clinic.authority, key, manifest, own)
    command = [sys.executable, "-c", CLIENT, f"127.0.0.1:{port}", *map(str, paths)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def held_bytes(own: Path) -> int:
    """How much of the objects lies on the disk, whole or not."""
    files = [path for path in own.glob("*/*/*") if path.is_file()]
    return sum(min(path.stat().st_blocks * 512, path.stat().st_size) for path in files)


def wait_for_bytes(own: Path, size: int, process: "subprocess.Popen[str] | None" = None) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            if held_bytes(own) >= size:
                return
        except FileNotFoundError:  # renamed meanwhile
            pass
        assert time.monotonic() < end, "nothing came"
        assert process is None or process.poll() is None, "the fetch ended too soon to be killed"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Parties:
    return parties(tmp_path_factory.mktemp("faults"), LARGE_FILES)


class KillingSource:
    """Kills the server when the first piece of an object has come, and counts the requests that fail of it."""

    def __init__(self, source: Source, server: "subprocess.Popen[str]") -> None:
        self._source, self._server = source, server
        self.interruptions = 0

    def read_range(self, digest: str, start: int, length: int, *, timeout_seconds: float) -> Iterator[bytes]:
        try:
            for piece in self._source.read_range(digest, start, length, timeout_seconds=timeout_seconds):
                yield piece
                self._server.kill()
        except SourceInterruptedError:
            self.interruptions += 1
            raise


def test_f01_a_server_that_is_killed_and_comes_back_costs_at_most_one_block(large: Parties, tmp_path: Path) -> None:
    with server_process("127.0.0.1:0", large.server, large.scene.path) as (first, port):
        address = f"127.0.0.1:{port}"
        with grpc_source(address, large.clinic) as source, second_server(large, first, address):
            killing = KillingSource(source, first)
            fetched = large.fetch(killing, own=tmp_path, deadline_seconds=90)
        assert first.wait() == -signal.SIGKILL
    assert killing.interruptions > 0, "the server was killed too late"
    assert fetched.moved_bytes <= fetched.size_bytes + BLOCK_BYTES
    assert large.open(fetched.path) == LARGE_FILES


@contextmanager
def second_server(large: Parties, first: "subprocess.Popen[str]", address: str) -> Iterator[None]:
    """Starts the server again at the same address once the first one is dead, and keeps it until the block ends."""
    ended = threading.Event()

    def run() -> None:
        first.wait()
        with server_process(address, large.server, large.scene.path):
            ended.wait()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        first.kill()
        thread.join()


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(1, id="at the start", marks=pytest.mark.slow),
        pytest.param(6 << 20, id="in a block"),
        pytest.param(17 << 20, id="near the end", marks=pytest.mark.slow),
    ],
)
def test_f01_a_client_that_is_killed_moves_at_most_one_block_again(large: Parties, tmp_path: Path, moment: int) -> None:
    own = tmp_path / "own"
    with server_process("127.0.0.1:0", large.server, large.scene.path) as (_, port):
        with client_process(large, port, own) as killed:
            wait_for_bytes(own, moment, killed)
            killed.kill()
        held = held_bytes(own)
        assert not list(own.glob(f"*/{MANIFEST_FILE}")), "a bundle that is not whole does not look like one"
        with client_process(large, port, own) as again:
            fetched = json.loads(again.communicate()[0])
    assert fetched["moved"] <= fetched["size"] - held + BLOCK_BYTES
    assert large.open(own / large.digest) == LARGE_FILES


class DyingSource(FolderSource):
    """Ends this process when the first piece of the ``block``-th block has been written, or is about to be."""

    def __init__(self, directory: Path, block: int) -> None:
        super().__init__(directory)
        self._left = block

    def read_range(self, digest: str, start: int, length: int, *, timeout_seconds: float) -> Iterator[bytes]:
        self._left -= 1
        pieces = super().read_range(digest, start, length, timeout_seconds=timeout_seconds)
        if self._left == 0:
            if length > MAX_PIECE_BYTES:
                yield next(pieces)
            os.kill(os.getpid(), signal.SIGKILL)
        yield from pieces


def test_f01_a_client_killed_in_any_block_goes_on_with_that_block(large: Parties, tmp_path: Path) -> None:
    blocks = [block for sealed in large.scene.manifest()["objects"] for block in sealed["blocks"]]
    moved = []
    for number in range(1, len(blocks) + 1):
        own = tmp_path / str(number)
        source = DyingSource(large.scene.path, number)
        process = FORK.Process(target=lambda source, own: large.fetch(source, own=own, streams=1), args=(source, own))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not list(own.glob(f"*/{MANIFEST_FILE}")), "a bundle that is not whole does not look like one"
        fetched = large.fetch(FolderSource(large.scene.path), own=own)
        moved.append(fetched.moved_bytes)
        assert large.open(fetched.path) == LARGE_FILES
    assert moved == sorted(moved, reverse=True) and moved[-1] <= BLOCK_BYTES, "no whole block is fetched again"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs, which needs root")
def test_f06_a_disk_that_fills_up_gives_one_error_and_the_next_fetch_goes_on(large: Parties, tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", mount], check=True)
    try:
        filler = mount / "filler"

        class SlowSource(FolderSource):
            """Lets another program take the disk after the room was checked."""

            def read_range(self, digest: str, start: int, length: int, *, timeout_seconds: float) -> Iterator[bytes]:
                if not filler.exists():
                    filler.write_bytes(bytes(os.statvfs(mount).f_bavail * 4096 - (6 << 20)))
                return super().read_range(digest, start, length, timeout_seconds=timeout_seconds)

        with pytest.raises(OutputError, match=r"No space left on device\. What came is kept: make room"):
            large.fetch(SlowSource(large.scene.path), own=mount / "own", streams=1)
        filler.write_bytes(b"")
        fetched = large.fetch(FolderSource(large.scene.path), own=mount / "own")
        assert fetched.moved_bytes < fetched.size_bytes
        assert large.open(fetched.path) == LARGE_FILES
        filler.write_bytes(bytes(os.statvfs(mount).f_bavail * 4096))
        with pytest.raises(OutputError, match="the rest of a bundle needs 19 MB and 67 MB to spare, 0 MB are free"):
            large.fetch(FolderSource(large.scene.path), own=mount / "other")
    finally:
        subprocess.run(["umount", mount], check=True)


def test_f06_a_file_that_may_not_grow_gives_one_error_and_the_next_fetch_goes_on(
    large: Parties, tmp_path: Path
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK_BYTES + (1 << 20), limits[1]))
    try:
        with pytest.raises(OutputError, match=r"File too large\. What came is kept"):
            large.fetch(FolderSource(large.scene.path), own=tmp_path, streams=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    place = tmp_path / large.digest
    name = large.object_of(EMULATOR, LARGE_FILES)
    assert not (place / OBJECTS_DIRECTORY / name).exists()
    assert (place / PARTIAL_DIRECTORY / name).stat().st_size == BLOCK_BYTES + (1 << 20)
    fetched = large.fetch(FolderSource(large.scene.path), own=tmp_path)
    assert fetched.moved_bytes <= fetched.size_bytes - BLOCK_BYTES
    assert large.open(fetched.path) == LARGE_FILES


def test_a_directory_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    two = parties(tmp_path / "two")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written: Not a directory"):
        two.fetch(FolderSource(two.scene.path), own=tmp_path / "file" / "own")


def test_f10_an_https_server_that_goes_away_for_a_while_is_waited_for(tmp_path: Path) -> None:
    two = parties(tmp_path / "two")
    with https_server(two.scene.path, two.server) as server:
        server.failures_left = 6
        fetched = two.fetch(HttpsSource(server.url, authority=two.authority.path))
        assert server.failures_left == 0
    assert two.open(fetched.path) == FILES


@pytest.mark.slow
def test_memory_of_both_sides_is_bounded_for_300_mb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = parties(tmp_path, {EMULATOR: os.urandom(300 << 20)})
    with server_process("127.0.0.1:0", two.server, two.scene.path) as (server, port):
        with client_process(two, port, two.own) as client:
            fetched = json.loads(client.communicate()[0])
        output, _ = server.communicate("")
    before, peak = map(float, output.split())
    with capsys.disabled():
        speed = fetched["size"] / fetched["seconds"] / 1e6
        growths = f"client +{fetched['growth_mib']:.0f} MiB, server +{peak - before:.0f} MiB"
        sys.stdout.write(f"\n300 MiB over gRPC with mutual TLS: {speed:.0f} MB/s, {growths}\n")
    assert fetched["growth_mib"] < 64
    assert peak - before < 64
