"""A TCP line between a client and a service that is slow, far away, and breaks: a proxy on loopback, one per service.

It carries bytes and knows nothing of TLS or gRPC. Memory is bounded: it reads on only when what it holds has gone out.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from queue import SimpleQueue

PIECE_BYTES, LEAST_PIECE_BYTES = 16 * 1024, 256
PIECE_SECONDS = 0.1
"""What a slow line carries in that time is a piece: it drips, and does not gush now and then."""
HELD_PIECES = 64
"""Per direction: 1 MiB, more than a line of 8 Mbit/s holds in 200 ms."""


class Break(Enum):
    """What happens to a connection, once, behind a number of bytes from the service."""

    CUT = auto()
    """It is closed on both sides."""
    SILENCE = auto()
    """It stays open, and nothing passes any more in either direction: a firewall that forgot it."""
    DUPLICATE = auto()
    """A piece comes twice."""
    CORRUPT = auto()
    """A byte of a piece is another."""


@dataclass
class Line:
    """What the proxy does to each connection, and what came of it."""

    bytes_per_second: float | None = None
    """In each direction."""
    latency_seconds: float = 0.0
    """In each direction: half of a round trip."""
    breaks: Break | None = None
    breaks_after: Iterator[int] = field(default_factory=lambda: iter(()))
    """Behind how many bytes each connection in turn breaks; those for which none is left hold."""
    port: int = 0
    """Where clients connect to."""
    connected_at: list[float] = field(default_factory=list)
    """By the monotonic clock, as all times here."""
    broken_at: list[float] = field(default_factory=list)
    left_by_service_at: list[float] = field(default_factory=list)
    """When the service itself closed a connection that had fallen silent."""


@contextmanager
def bad_network(service_port: int, line: Line, *, port: int = 0) -> Iterator[Line]:
    """Runs the proxy in a thread of its own until the block ends; ``port`` 0 is any free one."""
    started: SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = SimpleQueue()

    async def serve() -> None:
        server = await asyncio.start_server(
            lambda reader, writer: _Connection(line).carry(reader, writer, service_port), "127.0.0.1", port
        )
        line.port, ended = server.sockets[0].getsockname()[1], asyncio.Event()
        started.put((asyncio.get_running_loop(), ended))
        await ended.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    loop, ended = started.get()
    try:
        yield line
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()


_Pieces = asyncio.Queue[tuple[float, bytes]]
"""When each is due, and what it is."""


class _Connection:
    def __init__(self, line: Line) -> None:
        self._line, self._is_silent, self._received = line, False, 0
        self._breaks_after = next(line.breaks_after, None)

    async def carry(
        self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter, service_port: int
    ) -> None:
        self._line.connected_at.append(time.monotonic())
        writers, tasks = [to_client], []
        with suppress(OSError, asyncio.CancelledError):  # nobody listens, or the test is over: the client is told
            from_service, to_service = await asyncio.open_connection("127.0.0.1", service_port)
            writers.append(to_service)
            for reader, writer in ((from_client, to_service), (from_service, to_client)):
                pieces: _Pieces = asyncio.Queue(HELD_PIECES)
                tasks.append(asyncio.create_task(self._receive(reader, pieces, is_download=writer is to_client)))
                tasks.append(asyncio.create_task(self._deliver(pieces, writer)))
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()

    async def _receive(self, reader: asyncio.StreamReader, pieces: _Pieces, *, is_download: bool) -> None:
        """Takes what comes from one end until it closes or the line is cut."""
        free_at, rate = time.monotonic(), self._line.bytes_per_second
        size = PIECE_BYTES if rate is None else min(PIECE_BYTES, max(LEAST_PIECE_BYTES, int(PIECE_SECONDS * rate)))
        with suppress(ConnectionError):
            while received := await reader.read(size):
                piece = self._spoilt(received) if is_download else received
                if piece is None:
                    return
                if not self._is_silent:
                    free_at = max(free_at, time.monotonic()) + (len(piece) / rate if rate else 0.0)
                    await pieces.put((free_at + self._line.latency_seconds, piece))
        if self._is_silent and is_download:
            self._line.left_by_service_at.append(time.monotonic())
            await asyncio.Event().wait()  # the client is not told

    async def _deliver(self, pieces: _Pieces, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while True:
                due, piece = await pieces.get()
                await asyncio.sleep(max(due - time.monotonic(), 0.0))
                if not self._is_silent:
                    writer.write(piece)
                    await writer.drain()

    def _spoilt(self, piece: bytes) -> bytes | None:
        """Returns what becomes of a piece from the service; none if the line is cut."""
        self._received += len(piece)
        if self._breaks_after is None or self._received <= self._breaks_after:
            return piece
        self._breaks_after = None
        self._line.broken_at.append(time.monotonic())
        match self._line.breaks:
            case None:
                raise ValueError("a line that breaks does so in some way")
            case Break.CUT:
                return None
            case Break.SILENCE:
                self._is_silent = True
                return piece
            case Break.DUPLICATE:
                return piece + piece
            case Break.CORRUPT:
                middle = len(piece) // 2
                return piece[:middle] + bytes([piece[middle] ^ 1]) + piece[middle + 1 :]
