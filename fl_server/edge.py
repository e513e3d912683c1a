"""The edge: all that the network sees of Flower's server, which itself listens on loopback alone.

Flower's port serves its control API, unauthenticated, beside the one for SuperNodes, and reads a request's whole body
before it asks whose it is. The edge passes only ``POST /v1/fleet/...``, and decides before a byte of the body is read:

====================================  ======
another path or method                404
too many requests from one address    429
no length, or a longer body than may  411, 413
no fresh signature of an approved     401
organisation's node key
====================================  ======

What passes is streamed, so memory does not grow with a body. The SuperLink authenticates every request once more.
"""

import asyncio
import binascii
import time
from base64 import b64decode
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

FLEET_PREFIX = "/v1/fleet/"
MAX_SIGNATURE_AGE_SECONDS = 60.0
MAX_CLOCK_LEAD_SECONDS = 5.0
UPSTREAM_SECONDS = 60.0
REQUEST_SECONDS = 120.0 + UPSTREAM_SECONDS
"""A request has this long to arrive whole, which is 16 MiB at 1.2 Mbit/s, and to be answered."""
BURST_SECONDS = 4.0
"""An address that was quiet may ask this many seconds' worth of requests at once."""
MAX_ADDRESSES = 10_000
_PASSED_REQUEST_HEADERS = ("content-type", "content-length", "user-agent", "accept")
_PASSED_PREFIX = "flwr-"
_HOP_HEADERS = frozenset({"connection", "keep-alive", "transfer-encoding", "upgrade", "server", "date"})

NodeKeys = Callable[[], Mapping[bytes, str]]
"""The approved organisations by their node's public key (``SubjectPublicKeyInfo``, DER), as of now."""


class RateLimit:
    """A token bucket for each address; the longest unseen is forgotten when there are too many."""

    def __init__(self, per_second: float) -> None:
        self._per_second, self._burst = per_second, per_second * BURST_SECONDS
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admits(self, address: str, now: float) -> bool:
        """Takes a token of the address if there is one; ``now`` is in seconds on any steady clock."""
        tokens, at = self._buckets.pop(address, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) * self._per_second)
        is_admitted = tokens >= 1.0
        self._buckets[address] = (tokens - 1.0 if is_admitted else tokens, now)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        return is_admitted


@dataclass
class Gate:
    """Decides by a request's head alone."""

    node_keys: NodeKeys
    rate: RateLimit
    max_body_bytes: int
    seen: dict[str, float] = field(default_factory=dict)
    """When each organisation's node last asked, in seconds since 1970."""

    def refuse(self, request: Request, now: datetime) -> Response | None:
        """Returns the refusal of a request, or ``None`` if it may pass."""
        if request.method != "POST" or not request.url.path.startswith(FLEET_PREFIX):
            return _refusal(404, "not here")
        address = request.client.host if request.client else ""
        if not self.rate.admits(address, time.monotonic()):
            return _refusal(429, "too many requests from this address")
        length = request.headers.get("content-length")
        if length is None or not (length.isascii() and length.isdigit()):
            return _refusal(411, "expected a Content-Length")
        if int(length) > self.max_body_bytes:
            return _refusal(413, f"expected at most {self.max_body_bytes} bytes")
        return self._refuse_signer(request, now)

    def _refuse_signer(self, request: Request, now: datetime) -> Response | None:
        signed = self._signed_by(request)
        if signed is None:
            return _refusal(401, "expected a signature of an approved organisation's node")
        organisation, at = signed
        if not -MAX_CLOCK_LEAD_SECONDS <= (now - at).total_seconds() <= MAX_SIGNATURE_AGE_SECONDS:
            return _refusal(
                401, f"E_CLOCK: a signature of {at:%Y-%m-%d %H:%M:%S}, here it is {now:%Y-%m-%d %H:%M:%S} UTC"
            )
        self.seen[organisation] = now.timestamp()
        return None

    def _signed_by(self, request: Request) -> tuple[str, datetime] | None:
        """Returns the organisation whose node has signed, and when that was by the node's clock."""
        headers = request.headers
        with suppress(
            KeyError, ValueError, OverflowError, TypeError, binascii.Error, InvalidSignature, UnsupportedAlgorithm
        ):
            pem = b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True)
            signature = b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER], validate=True)
            timestamp = headers[TIMESTAMP_HEADER]
            at = datetime.fromisoformat(timestamp)
            if at.tzinfo is None:
                return None
            key = load_pem_public_key(pem)
            if not isinstance(key, EllipticCurvePublicKey):
                return None
            der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            organisation = self.node_keys().get(der)
            if organisation is not None:
                key.verify(signature, timestamp.encode(), ECDSA(SHA256()))
                return organisation, at.astimezone(UTC)
        return None


class Edge:
    """The ASGI application."""

    def __init__(self, gate: Gate, upstream: httpx.AsyncClient) -> None:
        self._gate, self._upstream = gate, upstream

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        response = self._gate.refuse(request, datetime.now(UTC)) or await self._pass_on(request)
        await response(scope, receive, send)

    async def _pass_on(self, request: Request) -> Response:
        headers = [
            (name, value)
            for name, value in request.headers.items()
            if name in _PASSED_REQUEST_HEADERS or name.startswith(_PASSED_PREFIX)
        ]
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                answer = await self._upstream.send(
                    self._upstream.build_request("POST", request.url.path, headers=headers, content=request.stream()),
                    stream=True,
                )
        except TimeoutError:
            return _refusal(408, "the request did not arrive in time")
        except ClientDisconnect:
            return _refusal(400, "the request was cut")
        except httpx.TransportError:  # Flower's nodes ask again after 502
            return _refusal(502, "the server behind is not reachable")
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_HEADERS}
        return StreamingResponse(_answer(answer), status_code=answer.status_code, headers=kept)


async def _answer(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.aiter_raw():
            yield piece
    finally:
        await answer.aclose()


def _refusal(status: int, text: str) -> Response:
    # The connection is closed, because the body that follows was not read and never will be.
    return PlainTextResponse(text + "\n", status_code=status, headers={"Connection": "close"})
