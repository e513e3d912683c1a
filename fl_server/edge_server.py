"""The edge as a process: its sockets, its certificates, and when each organisation was last heard of."""

import asyncio
import json
import ssl
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from fl_server.deployment import SEEN_FILE, Deployment
from fl_server.edge import UPSTREAM_SECONDS, Edge, Gate, RateLimit
from fl_server.node_keys import ApprovedNodes
from scaleot_core.bundle.files import replace_file
from scaleot_core.bundle.tls_files import TlsFiles, read_tls_files
from scaleot_core.errors import InputError

MAX_CONNECTIONS = 1_000
KEEP_ALIVE_SECONDS = 30
DRAIN_SECONDS = 10
LOOK_SECONDS = 5.0
"""Between two looks at the certificates' files and two writings of who was heard of."""
MIB = 1024 * 1024


def run_edge(deployment: Deployment) -> None:
    """Serves until a signal comes; certificates that are replaced in place are taken up within seconds."""
    asyncio.run(_run(deployment))


async def _run(deployment: Deployment) -> None:
    settings = deployment.settings
    gate = Gate(
        ApprovedNodes(deployment.registry), RateLimit(settings.requests_per_second), settings.max_request_mib * MIB
    )
    trusted = ssl.create_default_context(cafile=deployment.tls.authority)
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=20)
    context = _server_context(deployment.tls)
    async with httpx.AsyncClient(
        base_url=f"https://{deployment.superlink}",
        verify=trusted,
        timeout=UPSTREAM_SECONDS,
        limits=limits,
        trust_env=False,
    ) as upstream:
        server = uvicorn.Server(
            uvicorn.Config(
                Edge(gate, upstream),
                host=deployment.fleet.host,
                port=deployment.fleet.port,
                ssl_context_factory=lambda *_: context,
                lifespan="off",
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,  # an address is what the socket says, not what a header claims
                limit_concurrency=MAX_CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=DRAIN_SECONDS,
            )
        )
        watch = asyncio.create_task(_watch(deployment, gate, context))
        try:
            await server.serve()
        finally:
            watch.cancel()


def _server_context(tls: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(tls.certificate, tls.private_key)
    return context


async def _watch(deployment: Deployment, gate: Gate, context: ssl.SSLContext) -> None:
    """Keeps the certificates of new connections current, and a file that tells when each organisation last asked."""
    tls = deployment.tls
    taken_up = _stamp(tls)
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        with suppress(OSError):  # a full disk costs a status line, no round
            replace_file(deployment.state / SEEN_FILE, json.dumps(gate.seen).encode(), mode=0o600)
        with suppress(InputError, OSError, ssl.SSLError):  # half replaced, or expired: the ones before stay
            if (stamp := _stamp(tls)) != taken_up:
                read_tls_files(tls, now=datetime.now(UTC))
                context.load_cert_chain(tls.certificate, tls.private_key)
                taken_up = stamp


def _stamp(tls: TlsFiles) -> tuple[Any, ...]:
    return tuple(_changed(path) for path in (tls.certificate, tls.private_key))


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns
