"""Where a data owner's sealed bundle comes from: a folder, an HTTPS server, or the model owner's gRPC service.

Each holds a repository (``scaleot_core.bundle.repository``) and the objects of its bundles.

None of them is trusted with anything but being there: whatever they give is verified by whoever asked (``fetch``).
"""

import http.client
import os
import ssl
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from scaleot_core.bundle.archive import PIECE_BYTES
from scaleot_core.bundle.distribution import MAX_PIECE_BYTES
from scaleot_core.bundle.files import open_regular_file
from scaleot_core.bundle.manifest import OBJECTS_DIRECTORY
from scaleot_core.bundle.tls_files import TlsFiles, read_tls_files
from scaleot_core.errors import FetchError, InputError, NotServedError, SourceInterruptedError

IDLE_SECONDS = 30.0
"""How long an HTTPS server may send nothing."""

_MISSING_STATUSES = frozenset({403, 404, 410})
_PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


class Source(Protocol):
    """Gives the files of a repository, and of the sealed bundles in it; used by several threads at once.

    All methods raise ``SourceInterruptedError`` for what may pass, such as a cut connection, and ``FetchError`` for
    what will not; ``NotServedError`` says that the source has no such thing, or none of the kind.
    """

    def read_range(self, digest: str, start: int, length: int, *, timeout_seconds: float) -> Iterator[bytes]:
        """Yields bytes of an object, in pieces of at most 1 MiB: what has come when it fails is good to keep.

        ``length`` is 1 to 16 MiB. It may end early without an error.
        """

    def repository_file(self, name: str, most_bytes: int, *, timeout_seconds: float) -> bytes:
        """Returns a small file of the repository, of which no more than ``most_bytes`` and one are read."""

    def grant(self, digest: str, *, timeout_seconds: float) -> bytes:
        """Returns the own organisation's grant of a bundle, at most 16 KiB and one byte."""


class FolderSource:
    """A repository in a directory: a stick, a share, a mounted bucket."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read_range(self, digest: str, start: int, length: int, *, timeout_seconds: float) -> Iterator[bytes]:
        """Reads from the object's file."""
        path = self._directory / OBJECTS_DIRECTORY / digest
        try:
            with open_regular_file(path) as file:
                for position in range(start, start + length, PIECE_BYTES):
                    size = min(PIECE_BYTES, start + length - position)
                    piece = os.pread(file.fileno(), size, position)
                    if len(piece) < size:
                        raise FetchError(f"{path} is cut: it ends before byte {position + size}")
                    yield piece
        except OSError as error:
            raise FetchError(f"{path} cannot be read: {error.strerror}") from error

    def repository_file(self, name: str, most_bytes: int, *, timeout_seconds: float) -> bytes:
        """Reads the file."""
        path = self._directory / name
        try:
            with open_regular_file(path) as file:
                return file.read(most_bytes + 1)
        except FileNotFoundError as error:
            raise NotServedError(f"{path} is not there") from error
        except OSError as error:
            raise FetchError(f"{path} cannot be read: {error.strerror}") from error

    def grant(self, digest: str, *, timeout_seconds: float) -> bytes:
        """Has none: what lies in a folder is for everyone."""
        raise NotServedError(f"{self._directory} is a folder, which holds no grants")


class HttpsSource:
    """A repository under a base URL of any HTTPS server that answers range requests: nginx, S3, a CDN.

    ``authority`` is a PEM file of the certificates to trust in place of the system's; ``tls`` is given where the server
    wants a client certificate too, and then names the authority. Redirections to anything but HTTPS fail. A proxy of
    the environment (``https_proxy``) is used.

    Raises ``InputError`` for a URL of another kind, and for PEM files that cannot be used.
    """

    def __init__(self, base_url: str, *, authority: Path | None = None, tls: TlsFiles | None = None) -> None:
        parts = urlsplit(base_url)
        if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment:
            raise InputError(f"expected a base URL such as https://host/bundle, got {base_url}")
        self._base_url = base_url.rstrip("/")
        try:
            context = ssl.create_default_context(cafile=tls.authority if tls else authority)
            if tls is not None:
                read_tls_files(tls, now=datetime.now(UTC))
                context.load_cert_chain(tls.certificate, tls.private_key)
        except (OSError, ssl.SSLError) as error:
            raise InputError(f"the PEM files for {base_url} cannot be used: {error}") from error
        # Not build_opener: it would add handlers that follow a redirection to http, ftp or a file of this machine.
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPSHandler(context=context),
            urllib.request.HTTPRedirectHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.UnknownHandler(),
        ):
            self._opener.add_handler(handler)

    def read_range(self, digest: str, start: int, length: int, *, timeout_seconds: float) -> Iterator[bytes]:
        """Gets a range of the object's file."""
        headers = {"Range": f"bytes={start}-{start + length - 1}"}
        return self._get(f"{OBJECTS_DIRECTORY}/{digest}", headers, 206, length, timeout_seconds)

    def repository_file(self, name: str, most_bytes: int, *, timeout_seconds: float) -> bytes:
        """Gets the file; what the server forbids counts as not there, as S3 answers for a missing one."""
        return b"".join(self._get(name, {}, 200, most_bytes + 1, timeout_seconds))

    def grant(self, digest: str, *, timeout_seconds: float) -> bytes:
        """Has none: what lies on a static server is for everyone."""
        raise NotServedError(f"{self._base_url} is a static server, which holds no grants")

    def _get(
        self, name: str, headers: dict[str, str], status: int, most_bytes: int, timeout_seconds: float
    ) -> Iterator[bytes]:
        end = time.monotonic() + timeout_seconds
        url = f"{self._base_url}/{name}"
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - __init__ has checked that it is https
        try:
            with self._opener.open(request, timeout=min(timeout_seconds, IDLE_SECONDS)) as response:
                if response.status != status:
                    raise FetchError(
                        f"{url}: expected status {status}, got {response.status}: has it no range requests?"
                    )
                left = most_bytes
                while left and (piece := response.read1(min(left, MAX_PIECE_BYTES))):  # read would wait for all of it
                    left -= len(piece)
                    yield piece
                    if time.monotonic() > end:
                        raise SourceInterruptedError(f"{url}: no whole answer in {timeout_seconds:.0f} seconds")
        except HTTPError as error:
            with error:
                raise _refusal(error.code)(f"{url}: status {error.code}") from error
        except URLError as error:
            raise _unreachable(url, error) from error
        except (OSError, http.client.HTTPException) as error:
            raise SourceInterruptedError(f"{url}: {error}") from error


def _refusal(status: int) -> type[FetchError]:
    if status in _MISSING_STATUSES:
        return NotServedError
    return SourceInterruptedError if status in _PASSING_STATUSES else FetchError


def _unreachable(url: str, error: URLError) -> FetchError:
    if isinstance(error.reason, ssl.SSLCertVerificationError):
        return FetchError(f"{url}: the server's certificate is not to be believed: {error.reason.verify_message}")
    if isinstance(error.reason, OSError):
        return SourceInterruptedError(f"{url}: {error.reason}")
    return FetchError(f"{url}: {error.reason}")
