"""The distribution service over real gRPC with mutual TLS: what it gives, and what it refuses to whom."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from fl_server.bundle_index import BundleIndex
from fl_server.distribution import PIECE_BYTES, serve_bundles
from fl_server.grants import issue_grants
from fl_server.organisation_limits import DEFAULT_LIMITS, Limits, OrganisationLimits
from fl_server.published_index import published_index
from scaleot_core.bundle import generate_identity
from scaleot_core.bundle.canonical import Json, canonical_json
from scaleot_core.bundle.distribution import MAX_PIECE_BYTES, SERVICE
from scaleot_core.bundle.manifest import BLOCK_BYTES, OBJECTS_DIRECTORY
from scaleot_core.bundle.tls_files import TlsFiles
from scaleot_core.errors import InputError
from tests.support.bundles import CLINIC
from tests.support.certificates import Authority
from tests.support.distribution_server import index_of
from tests.support.fetching import LARGE_FILES, Parties, parties
from tests.support.owner_homes import new_owner_home, publish_small_version

Code = grpc.StatusCode
TIMESTAMP = {"file": "metadata/timestamp.json"}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Parties:
    return parties(tmp_path_factory.mktemp("distribution"), LARGE_FILES)


def index_with_a_file(two: Parties) -> BundleIndex:
    """Returns an index of one bundle and of the small file that ``TIMESTAMP`` asks for."""
    return replace(index_of(two.scene.path), files={TIMESTAMP["file"]: b"renewed"})


class Client:
    """Sends what it is told, form or no form."""

    home = Path()
    """Of the model owner, where a whole one is served."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def call(self, method: str, request: bytes, timeout: float | None = 10) -> Any:
        return self._channel.unary_stream(f"/{SERVICE}/{method}")(request, timeout=timeout)

    def ask(self, method: str, request: Json, timeout: float | None = 10) -> bytes:
        return b"".join(self.call(method, canonical_json(request), timeout))

    def refusal(self, method: str, request: Json, timeout: float | None = 10) -> tuple[Code, str]:
        data = request if isinstance(request, bytes) else canonical_json(request)
        with pytest.raises(grpc.RpcError) as raised:
            list(self.call(method, data, timeout))
        return raised.value.code(), raised.value.details()


@contextmanager
def client(port: int, tls: TlsFiles) -> Iterator[Client]:
    """Reads the PEM files without the checks that our own client makes."""
    parts = (path.read_bytes() for path in (tls.authority, tls.private_key, tls.certificate))
    with grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(*parts)) as channel:
        yield Client(channel)


@contextmanager
def served(
    two: Parties, *, tls: TlsFiles | None = None, refused: set[str] | None = None, limits: Limits = DEFAULT_LIMITS
) -> Iterator[Client]:
    refused = set() if refused is None else refused
    index = index_with_a_file(two)
    with (
        serve_bundles(
            lambda: index, "127.0.0.1:0", tls=two.server, is_allowed=lambda name: name not in refused, limits=limits
        ) as port,
        client(port, tls or two.clinic) as opened,
    ):
        yield opened


@pytest.fixture(scope="module")
def asking(two: Parties) -> Iterator[Client]:
    with served(two) as opened:
        yield opened


@pytest.fixture(scope="module")
def emulator(two: Parties) -> str:
    return two.object_of("emulator.safetensors", LARGE_FILES)


@pytest.mark.parametrize(
    ("start", "length"), [(0, 1), (0, BLOCK_BYTES), (BLOCK_BYTES - 5, 3 << 20), (BLOCK_BYTES + 7, 100)]
)
def test_a_range_is_exactly_the_bytes_of_the_object(
    two: Parties, asking: Client, emulator: str, start: int, length: int
) -> None:
    content = (two.scene.path / OBJECTS_DIRECTORY / emulator).read_bytes()
    got = asking.ask("Range", {"length": length, "object": emulator, "start": start})
    assert got == content[start : start + length]


def test_no_message_of_a_reply_is_over_1_mib(asking: Client, emulator: str) -> None:
    request = canonical_json({"length": BLOCK_BYTES, "object": emulator, "start": 0})
    assert max(len(piece) for piece in asking.call("Range", request)) == PIECE_BYTES <= MAX_PIECE_BYTES


NO_DIGESTS = ["", "newer", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n", "/" + "a" * 63, "..%2f", 7, None]


@pytest.mark.parametrize("digest", NO_DIGESTS)
def test_what_is_no_digest_is_refused(asking: Client, digest: Json) -> None:
    for method, request in (
        ("Grant", {"bundle": digest}),
        ("Range", {"length": 1, "object": digest, "start": 0}),
    ):
        assert asking.refusal(method, request)[0] is Code.INVALID_ARGUMENT


def test_a_digest_of_nothing_that_is_served_is_not_found(two: Parties, asking: Client) -> None:
    for method, request in (
        ("Grant", {"bundle": "a" * 64}),
        ("Range", {"length": 1, "object": "a" * 64, "start": 0}),
        ("Range", {"length": 1, "object": two.digest, "start": 0}),
    ):
        code, details = asking.refusal(method, request)
        assert code is Code.NOT_FOUND
        assert next(value for value in request.values() if isinstance(value, str)) in details


@pytest.mark.parametrize(
    ("start", "length"), [(-1, 1), (0, 0), (0, -1), (0, BLOCK_BYTES + 1), (2**53, 1), (0.5, 1), ("0", 1), (True, 1)]
)
def test_a_range_that_may_not_be_asked_for_is_refused(asking: Client, emulator: str, start: Json, length: Json) -> None:
    # rfc8785 itself refuses integers beyond 2**53 - 1, so these bytes are written by hand
    data = f'{{"length":{length},"object":"{emulator}","start":{start!r}}}'.replace("'", '"').replace("True", "true")
    assert asking.refusal("Range", data.encode())[0] is Code.INVALID_ARGUMENT


def test_a_range_beyond_the_end_of_the_object_is_refused(two: Parties, asking: Client, emulator: str) -> None:
    size = (two.scene.path / OBJECTS_DIRECTORY / emulator).stat().st_size
    assert asking.ask("Range", {"length": 1, "object": emulator, "start": size - 1})
    for start, length in ((size, 1), (size - 1, 2), (2**53 - 1, 1)):
        request = {"length": length, "object": emulator, "start": start}
        assert asking.refusal("Range", request)[0] is Code.OUT_OF_RANGE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"file": "metadata/timestamp.json"}',
        b'{"file":"metadata/timestamp.json","path":"x"}',
        b"[" * 500,
    ],
    ids=range(7),
)
def test_a_request_of_another_form_is_refused(asking: Client, data: bytes) -> None:
    assert asking.refusal("RepositoryFile", data)[0] is Code.INVALID_ARGUMENT


def test_a_request_over_512_bytes_is_refused_unread(asking: Client) -> None:
    assert asking.refusal("RepositoryFile", b" " * 513)[0] is Code.RESOURCE_EXHAUSTED


def test_a_method_that_is_none_is_unimplemented(asking: Client) -> None:
    assert asking.refusal("Delete", TIMESTAMP)[0] is Code.UNIMPLEMENTED


@pytest.mark.parametrize("timeout", [None, 700])
def test_a_request_without_a_bounded_deadline_is_refused(asking: Client, timeout: float | None) -> None:
    code, details = asking.refusal("RepositoryFile", TIMESTAMP, timeout)
    assert code is Code.INVALID_ARGUMENT
    assert "deadline" in details


def test_a_revoked_organisation_is_refused_at_its_next_request(two: Parties) -> None:
    refused: set[str] = set()
    with served(two, refused=refused) as asking:
        asking.ask("RepositoryFile", TIMESTAMP)
        refused.add(CLINIC)
        for method, request in (
            ("RepositoryFile", TIMESTAMP),
            ("Range", {"length": 1, "object": "a" * 64, "start": 0}),
        ):
            code, details = asking.refusal(method, request)
            assert code is Code.PERMISSION_DENIED
            assert CLINIC in details


def test_an_unknown_organisation_is_asked_about_by_its_certificates_name(two: Parties) -> None:
    with served(two, tls=two.authority.issue("stranger"), refused={"stranger"}) as asking:
        assert asking.refusal("RepositoryFile", TIMESTAMP)[0] is Code.PERMISSION_DENIED


@pytest.mark.parametrize("name", [None, "clinic\x1b[2J"])
def test_a_certificate_that_names_no_organisation_is_refused(two: Parties, name: str | None) -> None:
    with served(two, tls=two.authority.issue(name)) as asking:
        assert asking.refusal("RepositoryFile", TIMESTAMP)[0] is Code.UNAUTHENTICATED


def test_a_certificate_of_another_authority_or_an_expired_one_never_reaches_the_service(
    two: Parties, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "other").issue(CLINIC)
    stranger = TlsFiles(stranger.certificate, stranger.private_key, two.authority.path)
    for tls in (stranger, two.authority.issue(CLINIC, days=-1)):
        with served(two, tls=tls) as asking:
            assert asking.refusal("RepositoryFile", TIMESTAMP)[0] is Code.UNAVAILABLE


def test_a_client_without_a_certificate_never_reaches_the_service(two: Parties) -> None:
    with serve_bundles(
        lambda: index_with_a_file(two), "127.0.0.1:0", tls=two.server, is_allowed=lambda _: True
    ) as port:
        credentials = grpc.ssl_channel_credentials(two.authority.path.read_bytes())
        for channel in (
            grpc.secure_channel(f"127.0.0.1:{port}", credentials),
            grpc.insecure_channel(f"127.0.0.1:{port}"),
        ):
            with channel:
                assert Client(channel).refusal("RepositoryFile", TIMESTAMP)[0] is Code.UNAVAILABLE


def test_a_replaced_certificate_is_used_for_the_next_connection_and_a_broken_one_is_not(
    two: Parties, tmp_path: Path
) -> None:
    first, second = two.authority.issue("server"), Authority(tmp_path / "next").issue("server")
    paths = TlsFiles(tmp_path / "certificate", tmp_path / "key", two.authority.path)

    def install(certificate: bytes, key: bytes) -> None:
        paths.private_key.touch(mode=0o600)
        paths.certificate.write_bytes(certificate)
        paths.private_key.write_bytes(key)

    install(first.certificate.read_bytes(), first.private_key.read_bytes())
    index = index_with_a_file(two)
    trusting_the_next = TlsFiles(two.clinic.certificate, two.clinic.private_key, second.authority)
    with serve_bundles(lambda: index, "127.0.0.1:0", tls=paths, is_allowed=lambda _: True) as port:
        with client(port, two.clinic) as asking:
            assert asking.ask("RepositoryFile", TIMESTAMP)
        install(b"half of a file", first.private_key.read_bytes())
        with client(port, two.clinic) as asking:
            assert asking.ask("RepositoryFile", TIMESTAMP)
        install(second.certificate.read_bytes(), second.private_key.read_bytes())
        with client(port, trusting_the_next) as asking:
            assert asking.ask("RepositoryFile", TIMESTAMP)


def test_one_organisation_has_so_many_streams_and_another_its_own(two: Parties, emulator: str) -> None:
    limits = Limits(streams=4, streams_per_organisation=1)
    request = canonical_json({"length": BLOCK_BYTES, "object": emulator, "start": 0})
    with (
        serve_bundles(
            lambda: index_with_a_file(two),
            "127.0.0.1:0",
            tls=two.server,
            is_allowed=lambda _: True,
            limits=limits,
        ) as port,
        client(port, two.clinic) as asking,
        client(port, two.authority.issue("other")) as other,
    ):
        slow = asking.call("Range", request)
        next(slow)  # and reads no more: flow control stops the server
        code, details = asking.refusal("RepositoryFile", TIMESTAMP)
        assert code is Code.RESOURCE_EXHAUSTED
        assert "streams" in details
        assert other.ask("RepositoryFile", TIMESTAMP)
        slow.cancel()
        wait_until_answered(asking)


def wait_until_answered(asking: Client) -> None:
    for _ in range(100):
        try:
            asking.ask("RepositoryFile", TIMESTAMP)
        except grpc.RpcError:
            threading.Event().wait(0.05)
        else:
            return
    pytest.fail("the stream that was given up still counts")


def test_a_reader_that_stops_holds_its_stream_no_longer_than_its_deadline(two: Parties, emulator: str) -> None:
    with served(two, limits=Limits(streams=1)) as asking:
        slow = asking.call("Range", canonical_json({"length": BLOCK_BYTES, "object": emulator, "start": 0}), 1)
        next(slow)
        assert asking.refusal("RepositoryFile", TIMESTAMP)[0] is Code.RESOURCE_EXHAUSTED
        wait_until_answered(asking)


def test_requests_are_counted_by_the_second() -> None:
    moment = 0.0
    limits = OrganisationLimits(Limits(requests_per_second=2, requests_at_once=3), clock=lambda: moment)

    def asked() -> bool:
        if limits.refuse("a") is None:
            limits.leave("a")
            return True
        return False

    assert [asked() for _ in range(5)] == [True, True, True, False, False]
    assert limits.refuse("b") is None
    moment = 1.0
    assert [asked() for _ in range(3)] == [True, True, False]
    moment = 1000.0
    assert [asked() for _ in range(4)] == [True, True, True, False]


def test_a_request_too_many_is_refused(two: Parties) -> None:
    with served(two, limits=Limits(requests_per_second=0.001, requests_at_once=2)) as asking:
        for _ in range(2):
            asking.ask("RepositoryFile", TIMESTAMP)
        assert asking.refusal("RepositoryFile", TIMESTAMP)[0] is Code.RESOURCE_EXHAUSTED


def _exchanged_for_a_link(path: Path, content: bytes) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def _cut(path: Path, content: bytes) -> None:
    path.write_bytes(content[:-1])


def _removed(path: Path, content: bytes) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [_exchanged_for_a_link, _cut, _removed])
def test_an_object_that_is_a_link_or_cut_or_missing_is_lost_and_its_path_stays_hidden(
    tmp_path: Path, damage: Callable[[Path, bytes], None]
) -> None:
    two = parties(tmp_path)
    path = two.scene.object_file(2)
    content = path.read_bytes()
    with served(two) as asking:
        whole = {"length": len(content), "object": path.name, "start": 0}
        assert asking.ask("Range", whole) == content
        damage(path, content)
        code, details = asking.refusal("Range", whole)
    assert code is Code.DATA_LOSS
    assert str(tmp_path) not in details


def test_a_port_that_is_taken_is_named(two: Parties) -> None:
    index = index_with_a_file(two)
    with ExitStack() as stack:
        port = stack.enter_context(
            serve_bundles(lambda: index, "127.0.0.1:0", tls=two.server, is_allowed=lambda _: True)
        )
        with pytest.raises(InputError, match=f"127.0.0.1:{port} cannot be listened on"):
            stack.enter_context(
                serve_bundles(lambda: index, f"127.0.0.1:{port}", tls=two.server, is_allowed=lambda _: True)
            )


@pytest.fixture(scope="module")
def published(two: Parties, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A whole home is served, with grants for the clinic that asks and for another."""
    home = new_owner_home(tmp_path_factory.mktemp("published") / "owner")
    publish_small_version(home)
    issue_grants(home, {name: generate_identity().recipient for name in ("clinic-a", "clinic-b")})
    with (
        serve_bundles(published_index(home), "127.0.0.1:0", tls=two.server, is_allowed=lambda _: True) as port,
        client(port, two.authority.issue("clinic-a")) as opened,
    ):
        opened.home = home
        yield opened


def test_the_small_files_of_a_repository_are_given_by_name(published: Client) -> None:
    for name in ("metadata/1.root.json", "metadata/timestamp.json"):
        given = published.ask("RepositoryFile", {"file": name})
        assert given == (published.home / "repository" / name).read_bytes()


@pytest.mark.parametrize(
    "name",
    ["../owner.key", "metadata/../../owner.key", "metadata/1.root.json/", "keys/root-1.key", "owner.key", "", 3, None],
)
def test_no_other_file_of_the_home_can_be_named(published: Client, name: Json) -> None:
    code, details = published.refusal("RepositoryFile", {"file": name})
    assert code is Code.INVALID_ARGUMENT
    assert str(published.home) not in details


def test_a_small_file_that_is_not_there_is_not_found(published: Client) -> None:
    assert published.refusal("RepositoryFile", {"file": "metadata/2.root.json"})[0] is Code.NOT_FOUND


def test_a_grant_is_given_to_the_organisation_that_the_certificate_names(published: Client) -> None:
    (digest,) = (path.name for path in (published.home / "grants").iterdir())
    given = published.ask("Grant", {"bundle": digest})
    assert given == (published.home / "grants" / digest / "clinic-a.grant.json").read_bytes()
    assert published.refusal("Grant", {"bundle": "0" * 64})[0] is Code.NOT_FOUND
    assert published.refusal("Grant", {"bundle": digest, "org": "clinic-b"})[0] is Code.INVALID_ARGUMENT
