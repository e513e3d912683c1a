import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleot_core.bundle import generate_identity, generate_signing_key
from scaleot_core.bundle.canonical import canonical_json
from scaleot_core.bundle.envelope import sign_statement
from scaleot_core.enrolment.admission import (
    ADMISSION_TYPE,
    MAX_ADMISSION_BYTES,
    AdmissionContents,
    open_admission,
    read_admission,
    write_admission,
)
from scaleot_core.errors import VerificationError
from tests.support.bundles import NOW

OWNER, IDENTITY = generate_signing_key(), generate_identity()
REQUEST, OTHER_REQUEST = "a" * 64, "b" * 64
CONTENTS = AdmissionContents(
    authority=b"authority",
    certificate=b"canary-certificate",
    distribution="fed.example.org:9443",
    fleet="[2001:db8::1]:9092",
    repository_root=b"{}",
)


def made(organisation: str = "clinic-a", request_sha256: str = REQUEST) -> bytes:
    return write_admission(
        CONTENTS,
        organisation=organisation,
        request_sha256=request_sha256,
        recipient=IDENTITY.recipient,
        owner=OWNER,
        now=NOW,
    )


def resigned(change: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
    """Returns an admission that its owner signed, changed."""
    said = json.loads(base64.b64decode(json.loads(made())["payload"]))
    return sign_statement(canonical_json(change(said)), ADMISSION_TYPE, OWNER)


def refusal(admission: bytes) -> str:
    with pytest.raises(VerificationError) as refused:
        open_admission(read_admission(admission, organisation="clinic-a", request_sha256=REQUEST), IDENTITY)
    return refused.value.code


def test_the_organisation_opens_what_the_owner_wrote() -> None:
    signed = read_admission(made(), organisation="clinic-a", request_sha256=REQUEST)
    assert signed.owner == OWNER.public
    assert open_admission(signed, IDENTITY) == CONTENTS


def test_nobody_else_can_open_or_read_it() -> None:
    admission = made()
    signed = read_admission(admission, organisation="clinic-a", request_sha256=REQUEST)
    with pytest.raises(VerificationError, match=r"admission\.unwrap"):
        open_admission(signed, generate_identity())
    payload = base64.b64decode(json.loads(admission)["payload"])
    assert b"fed.example.org" not in payload
    assert b"canary" not in payload and base64.b64encode(b"canary")[:-1] not in payload


@pytest.mark.parametrize(
    ("admission", "code"),
    [
        (lambda: made("clinic-b"), "admission.organisation"),
        (lambda: made(request_sha256=OTHER_REQUEST), "admission.request"),
        (lambda: resigned(lambda it: {**it, "issued": "2027-01-02T12:00:00+00:00"}), "admission.unwrap"),
        (lambda: resigned(lambda it: {**it, "enc": base64.b64encode(b"x" * 2000).decode()}), "admission.unwrap"),
        (lambda: resigned(lambda it: {**it, "enc": ""}), "admission.unwrap"),
        (lambda: resigned(lambda it: {**it, "type": "scaleot.admission/2"}), "admission.fields"),
        (lambda: resigned(lambda it: {**it, "note": ""}), "admission.fields"),
        (lambda: b"{}", "admission.fields"),
        (lambda: b"", "admission.json"),
        (lambda: b" " * (MAX_ADMISSION_BYTES + 1), "admission.size"),
    ],
)
def test_an_admission_for_another_or_a_changed_one_is_refused(admission: Callable[[], bytes], code: str) -> None:
    assert refusal(admission()) == code


def test_terms_relabelled_for_another_organisation_do_not_open() -> None:
    relabelled = resigned(lambda it: {**it, "organisation": "clinic-b"})
    signed = read_admission(relabelled, organisation="clinic-b", request_sha256=REQUEST)
    with pytest.raises(VerificationError, match=r"admission\.unwrap"):
        open_admission(signed, IDENTITY)


def test_a_key_in_the_admission_other_than_the_one_that_signed_is_refused() -> None:
    said = json.loads(base64.b64decode(json.loads(made())["payload"]))
    forged = sign_statement(canonical_json(said), ADMISSION_TYPE, generate_signing_key())
    assert refusal(forged) == "admission.signature"


@pytest.mark.parametrize("address", ["", "host", ":1", "host:", "host:x", "a b:1", "http://h:1", "h:123456", "[::1:9"])
def test_what_is_no_address_cannot_stand_in_an_admission(address: str) -> None:
    with pytest.raises(ValueError, match="fleet"):
        AdmissionContents(**{**CONTENTS.model_dump(), "fleet": address})


ADMISSION = made()


@given(st.integers(0, 20_000), st.integers(1, 255))
def test_no_byte_of_an_admission_can_be_changed(position: int, change: int) -> None:
    data = bytearray(ADMISSION)
    data[position % len(data)] ^= change
    refusal(bytes(data))
