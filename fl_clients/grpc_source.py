"""A sealed bundle from the model owner's own gRPC service; ``scaleot_core.bundle.distribution`` is the wire format."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import grpc

from scaleot_core.bundle.canonical import Document, write_document
from scaleot_core.bundle.distribution import (
    GRANT_METHOD,
    MAX_PIECE_BYTES,
    RANGE_METHOD,
    REPOSITORY_FILE_METHOD,
    SERVICE,
    TRAINING_METHOD,
    GrantRequest,
    RangeRequest,
    RepositoryFileRequest,
    TrainingRequest,
)
from scaleot_core.bundle.grant import MAX_GRANT_BYTES
from scaleot_core.bundle.tls_files import TlsFiles, read_tls_files
from scaleot_core.errors import FetchError, NotServedError, SourceInterruptedError

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_PIECE_BYTES),
    # A connection that a firewall dropped is noticed in 30 seconds. It is the ping's own timeout that ends it, a minute
    # unless set; that of keepalive alone does not.
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 15_000),
    ("grpc.http2.ping_timeout_ms", 15_000),
    # What may be under way in a stream that nobody reads yet: 10 MB/s each at 200 ms. gRPC's own estimate of it takes
    # three times the memory of all else here.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 2 * 1024 * 1024),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)
_LASTING = frozenset(
    {
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
_UNTRUSTED_CERTIFICATE = "CERTIFICATE_VERIFY_FAILED"  # how gRPC reports it, in the text of UNAVAILABLE
_SHOWN_CHARACTERS = 300


class GrpcSource:
    """The bundles that a distribution service serves, over one connection."""

    def __init__(self, channel: Any, address: str) -> None:
        self._address = address
        methods = (RANGE_METHOD, REPOSITORY_FILE_METHOD, GRANT_METHOD, TRAINING_METHOD)
        self._methods = {name: channel.unary_stream(f"/{SERVICE}/{name}") for name in methods}

    def read_range(self, digest: str, start: int, length: int, *, timeout_seconds: float) -> Iterator[bytes]:
        """Asks for a range of an object."""
        return self._ask(RANGE_METHOD, RangeRequest(length=length, object=digest, start=start), timeout_seconds)

    def repository_file(self, name: str, most_bytes: int, *, timeout_seconds: float) -> bytes:
        """Asks for a small file of the repository."""
        return self._ask_whole(REPOSITORY_FILE_METHOD, RepositoryFileRequest(file=name), most_bytes, timeout_seconds)

    def grant(self, digest: str, *, timeout_seconds: float) -> bytes:
        """Asks for the grant of the organisation that the own certificate names."""
        return self._ask_whole(GRANT_METHOD, GrantRequest(bundle=digest), MAX_GRANT_BYTES, timeout_seconds)

    def tell_training(self, step: TrainingRequest, *, timeout_seconds: float) -> None:
        """Tells the model owner how far training is; raises ``FetchError`` if it did not hear."""
        for _ in self._ask(TRAINING_METHOD, step, timeout_seconds):
            pass

    def _ask_whole(self, method: str, request: Document, most_bytes: int, timeout_seconds: float) -> bytes:
        reply = bytearray()
        for piece in self._ask(method, request, timeout_seconds):
            reply += piece
            if len(reply) > most_bytes:
                break
        return bytes(reply)

    def _ask(self, method: str, request: Document, timeout_seconds: float) -> Iterator[bytes]:
        call = self._methods[method](write_document(request), timeout=timeout_seconds)
        try:
            yield from call
        except grpc.RpcError as error:
            raise self._failure(error.code(), error.details() or "") from error
        finally:
            call.cancel()  # where the reader has stopped early; otherwise it does nothing

    def _failure(self, code: Any, details: str) -> FetchError:
        said = "".join(letter if letter.isprintable() else " " for letter in details[:_SHOWN_CHARACTERS])
        where = f"distribution service {self._address}: {code.name}: {said}"
        if _UNTRUSTED_CERTIFICATE in details:
            return FetchError(f"{where}. Its certificate is not of the authority in your PEM file, or has expired")
        if code is grpc.StatusCode.NOT_FOUND:
            return NotServedError(where)
        return FetchError(where) if code in _LASTING else SourceInterruptedError(where)


@contextmanager
def grpc_source(address: str, tls: TlsFiles) -> Iterator[GrpcSource]:
    """Opens a connection with mutual TLS to ``host:port`` and closes it at the end of the block.

    It connects at the first request. The server's certificate must be for ``host``. Raises ``InputError`` if a PEM
    file cannot be used.
    """
    own = read_tls_files(tls, now=datetime.now(UTC))
    credentials = grpc.ssl_channel_credentials(own.authority, own.private_key, own.certificate)
    with grpc.secure_channel(address, credentials, options=_OPTIONS) as channel:
        yield GrpcSource(channel, address)
