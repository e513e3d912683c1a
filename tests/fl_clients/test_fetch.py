"""Fetching from the service, from HTTPS and from a folder: what arrives, what is refused, and what moves twice."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from fl_clients.fetch import PARTIAL_DIRECTORY
from fl_clients.grpc_source import grpc_source
from fl_clients.patient_source import PatientSource
from fl_clients.sources import FolderSource, HttpsSource, Source
from fl_server.distribution import serve_bundles
from scaleot_core.bundle.manifest import BLOCK_BYTES, MANIFEST_FILE, OBJECTS_DIRECTORY
from scaleot_core.bundle.tls_files import TlsFiles
from scaleot_core.errors import FetchError, InputError, OutputError, VerificationError
from scaleot_core.progress import SilentReporter
from tests.support.bundles import CLINIC, FILES
from tests.support.certificates import Authority
from tests.support.distribution_server import index_of, server_process
from tests.support.fetching import LARGE_FILES, Parties, parties
from tests.support.https_files import FileServer, https_server

EMULATOR = "emulator.safetensors"
SOURCES = ["grpc", "https", "folder"]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Parties:
    return parties(tmp_path_factory.mktemp("large"), LARGE_FILES)


@pytest.fixture
def small(tmp_path: Path) -> Parties:
    return parties(tmp_path / "small")


@contextmanager
def grpc_of(two: Parties, *, tls: TlsFiles | None = None, server: TlsFiles | None = None) -> Iterator[Source]:
    index = index_of(two.scene.path)
    with (
        serve_bundles(
            lambda: index, "127.0.0.1:0", tls=server or two.server, is_allowed=lambda name: name == CLINIC
        ) as port,
        grpc_source(f"127.0.0.1:{port}", tls or two.clinic) as source,
    ):
        yield source


@contextmanager
def https_of(two: Parties) -> Iterator[tuple[HttpsSource, FileServer]]:
    with https_server(two.scene.path, two.server) as server:
        yield HttpsSource(server.url, authority=two.authority.path), server


@contextmanager
def source_of(two: Parties, kind: str) -> Iterator[Source]:
    with ExitStack() as stack:
        if kind == "grpc":
            yield stack.enter_context(grpc_of(two))
        elif kind == "https":
            yield stack.enter_context(https_of(two))[0]
        else:
            yield FolderSource(two.scene.path)


class CountedSource:
    """Passes everything through and remembers what was asked."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.asked: Counter[tuple[str, int]] = Counter()
        self.came_bytes = 0

    def read_range(self, digest: str, start: int, length: int, *, timeout_seconds: float) -> Iterator[bytes]:
        self.asked[digest, start] += 1
        for piece in self._source.read_range(digest, start, length, timeout_seconds=timeout_seconds):
            self.came_bytes += len(piece)
            yield piece


@pytest.mark.parametrize("kind", SOURCES)
def test_what_was_sealed_is_opened_after_the_fetch(large: Parties, tmp_path: Path, kind: str) -> None:
    with source_of(large, kind) as source:
        fetched = large.fetch(source, own=tmp_path)
    assert large.open(fetched.path) == LARGE_FILES
    assert (fetched.digest, fetched.version) == (large.digest, 1)
    assert fetched.path == tmp_path / large.digest
    assert fetched.moved_bytes == fetched.size_bytes > BLOCK_BYTES
    assert sorted(path.name for path in fetched.path.iterdir()) == [MANIFEST_FILE, OBJECTS_DIRECTORY]


@pytest.mark.parametrize("kind", SOURCES)
def test_a_second_fetch_moves_nothing(small: Parties, kind: str) -> None:
    with source_of(small, kind) as source:
        counted = CountedSource(source)
        assert small.fetch(counted).moved_bytes > 0
        asked = counted.asked.copy()
        assert small.fetch(counted).moved_bytes == 0
        assert counted.asked == asked


@pytest.mark.parametrize("kind", SOURCES)
def test_a_corrupted_object_is_refused_by_name_and_nothing_is_left_in_its_place(
    large: Parties, tmp_path: Path, kind: str
) -> None:
    name = large.object_of(EMULATOR, LARGE_FILES)
    path = large.scene.path / OBJECTS_DIRECTORY / name
    good = path.read_bytes()
    bad = bytearray(good)
    bad[BLOCK_BYTES + 99] ^= 1
    path.write_bytes(bad)
    try:
        with (
            source_of(large, kind) as source,
            pytest.raises(VerificationError, match=rf"{name}, block 1: .*object\.block"),
        ):
            large.fetch(source, own=tmp_path)
    finally:
        path.write_bytes(good)
    place = tmp_path / large.digest
    assert not (place / MANIFEST_FILE).exists()
    assert name not in [path.name for path in (place / OBJECTS_DIRECTORY).iterdir()]
    with source_of(large, kind) as source:
        again = large.fetch(source, own=tmp_path)
    assert again.moved_bytes < again.size_bytes, "the blocks that held were kept"
    assert large.open(again.path) == LARGE_FILES


def test_an_object_that_rots_in_place_is_repaired_by_the_block(large: Parties, tmp_path: Path) -> None:
    source = FolderSource(large.scene.path)
    path = large.fetch(source, own=tmp_path).path / OBJECTS_DIRECTORY / large.object_of(EMULATOR, LARGE_FILES)
    rotten = bytearray(path.read_bytes())
    rotten[0] ^= 1
    path.write_bytes(rotten)
    again = large.fetch(source, own=tmp_path)
    assert again.moved_bytes == BLOCK_BYTES
    assert large.open(again.path) == LARGE_FILES


def test_a_manifest_that_rots_in_place_is_written_again(small: Parties) -> None:
    source = FolderSource(small.scene.path)
    path = small.fetch(source).path / MANIFEST_FILE
    path.write_bytes(path.read_bytes()[:-1])
    assert small.fetch(source).moved_bytes == 0
    assert small.open(small.place) == FILES


def partial_of(two: Parties, own: Path, content: bytes) -> Path:
    """Lays a partial file of the emulator where an interrupted fetch would have left it."""
    path = own / two.digest / PARTIAL_DIRECTORY / two.object_of(EMULATOR, LARGE_FILES)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("kept", "tail", "moved_again"),
    [
        (BLOCK_BYTES, b"", 0),
        (5 << 20, b"", 0),
        (BLOCK_BYTES + (2 << 20) + 77, b"", 77),
        (BLOCK_BYTES, b"x" * (2 << 20), 2 << 20),
        (BLOCK_BYTES, b"x" * BLOCK_BYTES, 0),
    ],
    ids=["at a block", "in a block", "in a piece", "garbage after a block", "a garbage block, too long"],
)
def test_a_partial_file_is_continued_whatever_its_end_is(
    large: Parties, tmp_path: Path, kept: int, tail: bytes, moved_again: int
) -> None:
    whole = (large.scene.path / OBJECTS_DIRECTORY / large.object_of(EMULATOR, LARGE_FILES)).read_bytes()
    partial_of(large, tmp_path, whole[:kept] + tail)
    fetched = large.fetch(FolderSource(large.scene.path), own=tmp_path)
    assert fetched.moved_bytes <= fetched.size_bytes - kept + moved_again
    assert large.open(fetched.path) == LARGE_FILES


def test_a_partial_file_with_holes_is_filled(large: Parties, tmp_path: Path) -> None:
    whole = (large.scene.path / OBJECTS_DIRECTORY / large.object_of(EMULATOR, LARGE_FILES)).read_bytes()
    path = partial_of(large, tmp_path, b"")
    with path.open("r+b") as file:
        file.seek(BLOCK_BYTES)
        file.write(whole[BLOCK_BYTES:])
    fetched = large.fetch(FolderSource(large.scene.path), own=tmp_path)
    assert fetched.moved_bytes == fetched.size_bytes - len(whole) + BLOCK_BYTES
    assert large.open(fetched.path) == LARGE_FILES


def test_a_link_in_place_of_a_partial_file_is_not_followed(large: Parties, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    path = partial_of(large, tmp_path, b"")
    path.unlink()
    path.symlink_to(victim)
    with pytest.raises(OutputError, match="symbolic links"):
        large.fetch(FolderSource(large.scene.path), own=tmp_path)
    assert victim.read_bytes() == b"mine"


def test_two_clients_fetch_at_once(large: Parties, tmp_path: Path) -> None:
    with server_process("127.0.0.1:0", large.server, large.scene.path) as (_, port), ThreadPoolExecutor(2) as pool:

        def fetch(name: str, tls: TlsFiles) -> Path:
            with grpc_source(f"127.0.0.1:{port}", tls) as source:
                return large.fetch(source, own=tmp_path / name).path

        names = ["first", "second"]
        places = list(pool.map(fetch, names, [large.authority.issue(name) for name in names]))
    for place in places:
        assert large.open(place) == LARGE_FILES


def test_two_processes_do_not_fetch_one_bundle_to_one_place(small: Parties) -> None:
    small.own.mkdir()
    with (
        FileLock(small.own / f"{small.digest}.lock"),
        pytest.raises(InputError, match="is being fetched by another process"),
    ):
        small.fetch(FolderSource(small.scene.path))


def test_a_server_of_another_authority_is_told_apart_from_one_that_is_down(small: Parties, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    with grpc_of(small, server=other.issue("server")) as source, pytest.raises(FetchError, match="your PEM file"):
        small.fetch(source)
    with (
        https_server(small.scene.path, other.issue("server")) as server,
        pytest.raises(FetchError, match="certificate is not to be believed"),
    ):
        small.fetch(HttpsSource(server.url, authority=small.authority.path))


def test_an_expired_certificate_of_ones_own_is_named_before_anything_is_sent(small: Parties) -> None:
    expired = small.authority.issue(CLINIC, days=-1)
    with pytest.raises(InputError, match="have a new one issued"), grpc_source("127.0.0.1:1", expired):
        pytest.fail("the block must not run")


def test_an_organisation_that_is_not_enrolled_learns_so_at_once(small: Parties) -> None:
    with (
        grpc_of(small, tls=small.authority.issue("stranger")) as source,
        pytest.raises(FetchError, match="PERMISSION_DENIED: 'stranger' is unknown here, or revoked"),
    ):
        small.fetch(source)


def test_a_certificate_that_the_server_does_not_believe_ends_at_the_deadline(small: Parties, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "other").issue(CLINIC)
    tls = TlsFiles(stranger.certificate, stranger.private_key, small.authority.path)
    with grpc_of(small, tls=tls) as source, pytest.raises(FetchError, match=r"within 1 seconds.*UNAVAILABLE"):
        small.fetch(source, deadline_seconds=1)


def test_a_server_that_is_down_is_asked_until_the_deadline(small: Parties) -> None:
    with grpc_source("127.0.0.1:1", small.clinic) as source, pytest.raises(FetchError, match="within 1 seconds"):
        small.fetch(source, deadline_seconds=1)


def test_https_goes_on_after_failures_and_cut_replies(large: Parties, tmp_path: Path) -> None:
    with https_of(large) as (source, server):
        server.failures_left, server.cuts_left = 2, 2
        fetched = large.fetch(source, own=tmp_path)
    assert fetched.moved_bytes == fetched.size_bytes, "a reply that was cut is continued, not repeated"
    assert large.open(fetched.path) == LARGE_FILES


def test_https_without_ranges_is_refused_with_the_reason(small: Parties) -> None:
    with https_of(small) as (source, server):
        server.has_ranges = False
        with pytest.raises(FetchError, match="expected status 206, got 200"):
            small.fetch(source)


@pytest.mark.parametrize("target", ["http://127.0.0.1:1/", "file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_https_is_not_led_away_from_https(small: Parties, target: str) -> None:
    with https_of(small) as (source, server):
        server.redirect_to = target
        with pytest.raises(FetchError):
            PatientSource(source, deadline_seconds=2).repository_file("metadata/timestamp.json", 100)
        assert len(server.asked) == 1, "it is refused at once, not tried again"


@pytest.mark.parametrize("url", ["http://host/x", "host/x", "file:///x", "https://", "https://host/x?y=1"])
def test_only_an_https_url_is_a_base_url(url: str) -> None:
    with pytest.raises(InputError, match="expected a base URL"):
        HttpsSource(url)


def test_an_object_that_a_folder_lacks_is_named(small: Parties) -> None:
    path = small.scene.object_file(2)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(FetchError, match=f"{path.name} is cut"):
        small.fetch(FolderSource(small.scene.path))
    path.unlink()
    with pytest.raises(FetchError, match=f"{path.name} cannot be read: No such file"):
        small.fetch(FolderSource(small.scene.path))


class GreedySource(FolderSource):
    """A hostile source: gives more than it is asked for."""

    def read_range(self, digest: str, start: int, length: int, *, timeout_seconds: float) -> Iterator[bytes]:
        yield from super().read_range(digest, start, length, timeout_seconds=timeout_seconds)
        yield b"x"


class EmptySource(FolderSource):
    """A hostile source: answers, and gives nothing."""

    def read_range(self, digest: str, start: int, length: int, *, timeout_seconds: float) -> Iterator[bytes]:
        yield b""


def test_a_source_that_gives_more_or_nothing_is_refused(small: Parties) -> None:
    with pytest.raises(FetchError, match="more bytes than it was asked for"):
        list(
            PatientSource(GreedySource(small.scene.path), deadline_seconds=5).read_range(
                small.scene.object_file(1).name, 0, 4
            )
        )
    with pytest.raises(FetchError, match="within 1 seconds"):
        small.fetch(EmptySource(small.scene.path), deadline_seconds=1)


def test_progress_counts_every_megabyte_once(large: Parties, tmp_path: Path) -> None:
    class Counting(SilentReporter):
        steps = done = 0

        @contextmanager
        def stage(self, name: str, *, steps: int) -> Iterator["Counting"]:
            self.steps = steps
            yield self

        def advance(self, steps: int = 1, *, loss: float | None = None) -> None:
            self.done += steps

    reporter = Counting()
    fetched = large.fetch(FolderSource(large.scene.path), own=tmp_path, reporter=reporter)
    assert reporter.steps == reporter.done == fetched.size_bytes // 1_000_000
