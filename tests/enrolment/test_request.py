import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from hypothesis import given
from hypothesis import strategies as st

from scaleot_core.bundle import Identity, SigningKey, generate_identity, generate_signing_key
from scaleot_core.bundle.canonical import canonical_json
from scaleot_core.bundle.envelope import sign_statement
from scaleot_core.enrolment.request import ENROLMENT_TYPE, MAX_REQUEST_BYTES, read_request, write_request
from scaleot_core.enrolment.transport_keys import generate_transport_key, node_public_line, request_certificate
from scaleot_core.errors import InputError, VerificationError
from tests.support.bundles import NOW


@dataclass(frozen=True)
class Organisation:
    signing_key: SigningKey
    identity: Identity
    node_key: EllipticCurvePrivateKey
    tls_key: EllipticCurvePrivateKey

    def request(self, name: str = "clinic-a") -> bytes:
        return write_request(
            name,
            signing_key=self.signing_key,
            recipient=self.identity.recipient,
            node_key=self.node_key,
            tls_key=self.tls_key,
            now=NOW,
        )


def new_organisation() -> Organisation:
    return Organisation(generate_signing_key(), generate_identity(), generate_transport_key(), generate_transport_key())


@pytest.fixture(scope="module")
def clinic() -> Organisation:
    return new_organisation()


def statement(request: bytes) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(base64.b64decode(json.loads(request)["payload"]))
    return value


def refusal(request: bytes) -> str:
    with pytest.raises(VerificationError) as refused:
        read_request(request)
    return refused.value.code


def test_a_request_tells_every_public_key_of_the_organisation(clinic: Organisation) -> None:
    applicant = read_request(clinic.request())
    assert applicant.organisation == "clinic-a" and applicant.created == NOW
    assert applicant.verifying_key == clinic.signing_key.public
    assert applicant.recipient == clinic.identity.recipient
    assert applicant.node_public_key == node_public_line(clinic.node_key)
    assert applicant.tls_public_key == clinic.tls_key.public_key()


@pytest.mark.parametrize(
    "name", ["", "-a", ".", "..", "a/b", "a b", "a\\b", "ä", "a\n", "\u0430", "x" * 65, "loopback, without TLS"]
)
def test_a_name_that_a_certificate_or_a_file_cannot_have_is_refused(clinic: Organisation, name: str) -> None:
    with pytest.raises(InputError, match="expected 1 to 64 letters"):
        clinic.request(name)


@pytest.mark.parametrize("name", ["a", "7", "clinic-a", "St.Mary_2", "x" * 64])
def test_the_names_that_can_be(clinic: Organisation, name: str) -> None:
    assert read_request(clinic.request(name)).organisation == name


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda it: {**it, "organisation": "clinic-b"}, "enrolment.tls"),
        (lambda it: {**it, "organisation": "../clinic"}, "enrolment.fields"),
        (lambda it: {**it, "node_public_key": "ssh-rsa AAAA"}, "enrolment.fields"),
        (lambda it: {**it, "tls_request": "AAAA"}, "enrolment.tls"),
        (lambda it: {**it, "tls_request": "?"}, "enrolment.fields"),
        (lambda it: {**it, "recipient": {}}, "enrolment.fields"),
        (lambda it: {**it, "created": "yesterday"}, "enrolment.fields"),
        (lambda it: {**it, "type": "scaleot.enrolment/2"}, "enrolment.fields"),
        (lambda it: {**it, "note": 1}, "enrolment.fields"),
        (lambda it: {name: value for name, value in it.items() if name != "recipient"}, "enrolment.fields"),
    ],
)
def test_a_signed_request_that_says_something_else_is_refused(
    clinic: Organisation, change: Callable[[dict[str, Any]], dict[str, Any]], code: str
) -> None:
    changed = canonical_json(change(statement(clinic.request())))
    assert refusal(sign_statement(changed, ENROLMENT_TYPE, clinic.signing_key)) == code


def test_a_request_that_another_key_signed_is_refused(clinic: Organisation) -> None:
    stolen = canonical_json(statement(clinic.request()))
    assert refusal(sign_statement(stolen, ENROLMENT_TYPE, generate_signing_key())) == "enrolment.signature"
    assert refusal(sign_statement(stolen, "application/json", clinic.signing_key)) == "enrolment.signature"


def test_a_certificate_request_for_another_name_cannot_be_reused(clinic: Organisation) -> None:
    thief = new_organisation()
    renamed = {
        **statement(thief.request("thief")),
        "tls_request": base64.b64encode(request_certificate(clinic.tls_key, "clinic-a")).decode(),
    }
    assert refusal(sign_statement(canonical_json(renamed), ENROLMENT_TYPE, thief.signing_key)) == "enrolment.tls"


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", "enrolment.json"), (b"{}", "enrolment.fields"), (b" " * (MAX_REQUEST_BYTES + 1), "enrolment.size")],
)
def test_what_is_no_request_is_refused(data: bytes, code: str) -> None:
    assert refusal(data) == code


@given(st.integers(0, 20_000), st.integers(1, 255))
def test_no_byte_of_a_request_can_be_changed(position: int, change: int) -> None:
    data = bytearray(REQUEST)
    data[position % len(data)] ^= change
    with pytest.raises(VerificationError):
        read_request(bytes(data))


REQUEST = new_organisation().request()
