"""Serves sealed bundles by digest over gRPC with mutual TLS; ``scaleot_core.bundle.distribution`` is the wire format.

What is served is ciphertext, worth nothing without a grant, and nothing here can decrypt it. A client is the
organisation that its certificate names: it gets no other's grant, and ``is_allowed`` is asked at every request, so that
a revoked one is cut off within one range. Requests hold digests and names, looked up in an index and nowhere else.

Memory is bounded: a stream holds one piece of 256 KiB, and the next is read when HTTP/2's flow control has taken it. A
client that stops reading holds one of its few streams until the deadline that every request must have.
"""

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import grpc
from pydantic import TypeAdapter

from fl_server.bundle_index import BundleIndex
from fl_server.organisation_limits import DEFAULT_LIMITS, Limits, OrganisationLimits
from scaleot_core.bundle.canonical import Document, read_document
from scaleot_core.bundle.distribution import (
    GRANT_METHOD,
    MAX_DEADLINE_SECONDS,
    MAX_REQUEST_BYTES,
    RANGE_METHOD,
    REPOSITORY_FILE_METHOD,
    SERVICE,
    TRAINING_METHOD,
    GrantRequest,
    RangeRequest,
    RepositoryFileRequest,
    TrainingRequest,
)
from scaleot_core.bundle.files import open_regular_file
from scaleot_core.bundle.grant import Organisation
from scaleot_core.bundle.tls_files import TlsCredentials, TlsFiles, read_tls_files
from scaleot_core.errors import InputError, VerificationError

DRAIN_SECONDS = 10.0
PIECE_BYTES = 256 * 1024
"""Of one message of a reply, of which a stream holds about three; larger ones are no faster."""

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a share of the clients
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.server_handshake_timeout_ms", 20_000),
    ("grpc.keepalive_time_ms", 15_000),  # a client that is gone without a word holds its streams for 30 seconds
    ("grpc.keepalive_timeout_ms", 15_000),
    ("grpc.http2.ping_timeout_ms", 15_000),
    ("grpc.http2.bdp_probe", 0),  # requests are tiny: no connection needs room to receive more
    ("grpc.http2.lookahead_bytes", 64 * 1024),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)
_ORGANISATION: TypeAdapter[str] = TypeAdapter(Organisation)
_Request = TypeVar("_Request", bound=Document)
_Context = Any  # grpc.ServicerContext: grpcio has no types


@contextmanager
def serve_bundles(
    index: Callable[[], BundleIndex],
    address: str,
    *,
    tls: TlsFiles,
    is_allowed: Callable[[str], bool],
    limits: Limits = DEFAULT_LIMITS,
    on_sent: Callable[[str, RangeRequest], None] = lambda *_: None,
    on_training: Callable[[str, TrainingRequest], None] = lambda *_: None,
) -> Iterator[int]:
    """Serves until the block ends, and then lets streams that are under way finish for up to 10 seconds.

    ``index`` is asked at every request what there is to give, by several threads: ``published_index`` for a home.
    ``address`` is ``host:port``, port 0 for any free one; the block gets the port. The PEM files are read again at
    every handshake, so that certificates can be replaced in place; while they cannot be used, the last good ones stay.
    ``is_allowed`` is called by several threads and must not raise, nor must ``on_sent``, which learns of every range
    that went out, and to whom, and ``on_training``, which learns how far an organisation says that its training is.

    Raises:
        InputError: a PEM file cannot be used, or the address cannot be listened on.
    """
    certificates = _TlsConfiguration(tls)
    credentials = grpc.dynamic_ssl_server_credentials(
        certificates.latest, certificates.read_again, require_client_authentication=True
    )
    service = _Service(index, is_allowed, limits, on_sent=on_sent, on_training=on_training)
    pool = ThreadPoolExecutor(limits.streams, thread_name_prefix="distribution")
    server = grpc.server(pool, options=_OPTIONS, maximum_concurrent_rpcs=limits.streams)
    server.add_generic_rpc_handlers((service.handlers(),))
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise InputError(f"{address} cannot be listened on: is it taken by another process?") from error
    server.start()
    try:
        yield port
    finally:
        server.stop(DRAIN_SECONDS).wait()
        pool.shutdown()


class _TlsConfiguration:
    """The server's certificates as gRPC wants them, and again whenever their files change."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._credentials = read_tls_files(files, now=datetime.now(UTC))
        self.latest = self._of(self._credentials)

    def read_again(self) -> Any:
        """Returns the configuration if it changed and can be used, and ``None`` for the one before."""
        try:
            credentials = read_tls_files(self._files, now=datetime.now(UTC))
        except InputError:
            return None  # half replaced, or expired, which the handshake tells the client
        if credentials == self._credentials:
            return None
        self._credentials = credentials
        return self._of(credentials)

    @staticmethod
    def _of(credentials: TlsCredentials) -> Any:
        pair = (credentials.private_key, credentials.certificate)
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=credentials.authority)


class _Service:
    """The methods: each decides whether it may answer, and then streams bytes."""

    def __init__(
        self,
        index: Callable[[], BundleIndex],
        is_allowed: Callable[[str], bool],
        limits: Limits,
        *,
        on_sent: Callable[[str, RangeRequest], None],
        on_training: Callable[[str, TrainingRequest], None],
    ) -> None:
        self._index, self._is_allowed = index, is_allowed
        self._limits, self._on_sent, self._on_training = OrganisationLimits(limits), on_sent, on_training

    def handlers(self) -> Any:
        """Returns the methods under their names; requests and replies stay bytes."""
        methods = {
            RANGE_METHOD: self._range,
            REPOSITORY_FILE_METHOD: self._repository_file,
            GRANT_METHOD: self._grant,
            TRAINING_METHOD: self._training,
        }
        return grpc.method_handlers_generic_handler(
            SERVICE, {name: grpc.unary_stream_rpc_method_handler(method) for name, method in methods.items()}
        )

    def _repository_file(self, data: bytes, context: _Context) -> Iterator[bytes]:
        asked, _ = self._admit(RepositoryFileRequest, data, context)
        return _whole(self._index().files.get(asked.file), f"no file {asked.file} is served", context)

    def _grant(self, data: bytes, context: _Context) -> Iterator[bytes]:
        asked, organisation = self._admit(GrantRequest, data, context)
        grant = self._index().grants.get((organisation, asked.bundle))
        return _whole(grant, f"{organisation!r} has no grant for bundle {asked.bundle}", context)

    def _training(self, data: bytes, context: _Context) -> Iterator[bytes]:
        told, organisation = self._admit(TrainingRequest, data, context)
        self._on_training(organisation, told)
        return iter(())

    def _range(self, data: bytes, context: _Context) -> Iterator[bytes]:
        asked, organisation = self._admit(RangeRequest, data, context)
        served = self._index().objects.get(asked.object)
        if served is None:
            _refuse(context, grpc.StatusCode.NOT_FOUND, f"no object {asked.object} is served")
        if asked.start + asked.length > served.size_bytes:
            fault = f"object {asked.object} has {served.size_bytes} bytes, asked for {asked.length} from {asked.start}"
            _refuse(context, grpc.StatusCode.OUT_OF_RANGE, fault)
        try:
            yield from _pieces(served.path, asked.start, asked.length)
            self._on_sent(organisation, asked)
        except OSError:  # its text has the path, which is nobody else's business
            _refuse(context, grpc.StatusCode.DATA_LOSS, f"the server cannot read its object {asked.object}")

    def _admit(self, schema: type[_Request], data: bytes, context: _Context) -> tuple[_Request, str]:
        """Returns the request of an organisation that may make it now, and whose it is; refuses it otherwise."""
        organisation = _organisation_of(context)
        if not self._is_allowed(organisation):
            _refuse(context, grpc.StatusCode.PERMISSION_DENIED, f"{organisation!r} is unknown here, or revoked")
        try:
            request = read_document(schema, data, kind="request", limit_bytes=MAX_REQUEST_BYTES)
        except VerificationError as error:
            _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        seconds = context.time_remaining()
        if seconds is None or seconds > MAX_DEADLINE_SECONDS:
            fault = f"expected a deadline of at most {MAX_DEADLINE_SECONDS} seconds"
            _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, fault)
        refusal = self._limits.refuse(organisation)
        if refusal is not None:
            _refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, refusal)
        if not context.add_callback(lambda: self._limits.leave(organisation)):
            self._limits.leave(organisation)  # it ended already
        return request, organisation


def _whole(content: bytes | None, fault: str, context: _Context) -> Iterator[bytes]:
    if content is None:
        _refuse(context, grpc.StatusCode.NOT_FOUND, fault)
    return (content[start : start + PIECE_BYTES] for start in range(0, len(content), PIECE_BYTES))


def _pieces(path: Path, start: int, length: int) -> Iterator[bytes]:
    """Yields a range of a file; raises ``OSError`` if the file is not there or ends before the range does."""
    with open_regular_file(path, flags=os.O_NOFOLLOW) as file:
        for position in range(start, start + length, PIECE_BYTES):
            size = min(PIECE_BYTES, start + length - position)
            piece = os.pread(file.fileno(), size, position)
            if len(piece) != size:
                raise OSError(errno.EIO, "the file was cut", str(path))
            yield piece


def _organisation_of(context: _Context) -> str:
    """Returns the common name of the client's certificate, which TLS has verified."""
    try:
        (name,) = context.auth_context().get("x509_common_name", ())
        return _ORGANISATION.validate_python(name.decode())
    except ValueError:  # none, several, no UTF-8, or not printable (pydantic's error is a ValueError)
        fault = "expected a certificate whose common name is the organisation's name"
        _refuse(context, grpc.StatusCode.UNAUTHENTICATED, fault)


def _refuse(context: _Context, code: Any, details: str) -> NoReturn:
    context.abort(code, details)
    raise AssertionError  # abort has raised; this says so to the type checker
