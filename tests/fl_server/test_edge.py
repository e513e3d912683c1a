from base64 import b64encode
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP384R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from starlette.requests import Request

from fl_server.edge import BURST_SECONDS, MAX_ADDRESSES, Gate, RateLimit

NODE, STRANGER = generate_private_key(SECP384R1()), generate_private_key(SECP384R1())
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
CAP = 1_000


def public(key: EllipticCurvePrivateKey, encoding: Encoding) -> bytes:
    return key.public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)


def signed(key: EllipticCurvePrivateKey, at: datetime = NOW) -> dict[str, str]:
    timestamp = at.isoformat()
    return {
        "flwr-public-key": b64encode(public(key, Encoding.PEM)).decode(),
        "flwr-timestamp": timestamp,
        "flwr-signature": b64encode(key.sign(timestamp.encode(), ECDSA(SHA256()))).decode(),
    }


def request(
    headers: dict[str, str], *, method: str = "POST", path: str = "/v1/fleet/pull-messages", length: str | None = "10"
) -> Request:
    given = headers | ({} if length is None else {"content-length": length})
    raw = [(name.encode(), value.encode()) for name, value in given.items()]
    return Request({"type": "http", "method": method, "path": path, "headers": raw, "client": ("192.0.2.1", 1)})


@pytest.fixture
def gate() -> Gate:
    return Gate(lambda: {public(NODE, Encoding.DER): "clinic"}, RateLimit(1000.0), CAP)


def status(gate: Gate, request: Request) -> int | None:
    refusal = gate.refuse(request, NOW)
    return None if refusal is None else refusal.status_code


def test_an_approved_node_with_a_fresh_signature_passes_and_is_seen(gate: Gate) -> None:
    assert status(gate, request(signed(NODE))) is None
    assert gate.seen == {"clinic": NOW.timestamp()}


@pytest.mark.parametrize("path", ["/v1/control/start-run", "/v1/runtime/acquire-task", "/docs", "/health", "/v1/fleet"])
def test_nothing_but_the_fleet_api_is_here(gate: Gate, path: str) -> None:
    assert status(gate, request(signed(NODE), path=path)) == 404


def test_only_posts_are_taken(gate: Gate) -> None:
    assert status(gate, request(signed(NODE), method="GET")) == 404


@pytest.mark.parametrize(("length", "expected"), [(None, 411), ("", 411), ("-1", 411), ("٣", 411), ("1001", 413)])
def test_a_body_has_to_say_its_length_and_be_small_enough(gate: Gate, length: str | None, expected: int) -> None:
    given = request(signed(NODE), length=None)
    if length is not None:
        given.scope["headers"].append((b"content-length", length.encode("latin-1", "replace")))
    assert status(gate, given) == expected


@pytest.mark.parametrize(
    "headers",
    [
        {},
        signed(STRANGER),
        signed(NODE, NOW - timedelta(seconds=61)),
        signed(NODE, NOW + timedelta(seconds=6)),
        signed(NODE) | {"flwr-timestamp": (NOW - timedelta(seconds=1)).isoformat()},
        signed(NODE) | {"flwr-timestamp": "2026-11-25T12:00:00"},
        signed(NODE) | {"flwr-signature": signed(STRANGER)["flwr-signature"]},
        signed(NODE) | {"flwr-public-key": "!"},
        signed(NODE) | {"flwr-public-key": b64encode(b"x" * 100).decode()},
    ],
    ids=["anonymous", "unknown", "old", "ahead", "other-time", "no-zone", "forged", "no-base64", "no-key"],
)
def test_who_is_not_an_approved_node_is_refused(gate: Gate, headers: dict[str, str]) -> None:
    assert status(gate, request(headers)) == 401
    assert not gate.seen


def test_an_address_that_asks_too_often_waits_and_others_do_not() -> None:
    rate = RateLimit(2.0)
    burst = int(2.0 * BURST_SECONDS)
    assert [rate.admits("a", 0.0) for _ in range(burst + 1)] == [True] * burst + [False]
    assert rate.admits("b", 0.0)
    assert rate.admits("a", 0.5)
    assert not rate.admits("a", 0.5)


def test_the_memory_for_addresses_is_bounded() -> None:
    rate = RateLimit(1.0)
    for number in range(MAX_ADDRESSES + 10):
        rate.admits(str(number), 0.0)
    assert len(rate._buckets) == MAX_ADDRESSES
