"""An HTTPS server of one directory that answers range requests: Python's own, on loopback."""

import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from scaleot_core.bundle.tls_files import TlsFiles


class RangeHandler(BaseHTTPRequestHandler):
    """Gives files, whole or in part; ``directory``, ``failures_left`` and ``asked`` are the server's own."""

    server: "FileServer"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range", "")))
        if self.server.redirect_to:
            self.send_response(HTTPStatus.FOUND)
            self.send_header("Location", self.server.redirect_to)
            self.end_headers()
            return
        if self.server.failures_left:
            self.server.failures_left -= 1
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        path = self.server.directory / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self._send(path.read_bytes())

    def _send(self, data: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and self.server.has_ranges:
            start, last = int(asked[1]), int(asked[2])
            self.send_response(HTTPStatus.PARTIAL_CONTENT)
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(data)}")
            data = data[start : last + 1]
        else:
            self.send_response(HTTPStatus.OK)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.server.cuts_left and asked:
            self.server.cuts_left -= 1
            data = data[: len(data) // 2]
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class FileServer(ThreadingHTTPServer):
    """What it serves, what it was asked, and how it misbehaves first."""

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), RangeHandler)
        self.directory = directory
        self.asked: list[tuple[str, str]] = []
        self.failures_left = self.cuts_left = 0
        self.has_ranges = True
        self.redirect_to = ""

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that does not believe the certificate is no news."""


@contextmanager
def https_server(directory: Path, tls: TlsFiles) -> Iterator[FileServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.private_key)
    server = FileServer(directory)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
