import re

import pytest

from scaleot_core.bundle import generate_signing_key
from scaleot_core.enrolment.fingerprint import check_fingerprint, owner_fingerprint, request_fingerprint
from scaleot_core.errors import VerificationError

REQUEST = request_fingerprint(b"request")


def test_a_fingerprint_is_eight_groups_of_five_digits_and_depends_on_every_bit() -> None:
    assert re.fullmatch(r"[0-9]{5}( [0-9]{5}){7}", REQUEST)
    assert len({request_fingerprint(data) for data in (b"request", b"requesu", b"Request", b"")}) == 4


def test_a_fingerprint_has_at_least_120_bits() -> None:
    assert 10**40 > 2**120


def test_an_owner_and_a_request_never_share_a_fingerprint_by_construction() -> None:
    owner = generate_signing_key().public
    assert owner_fingerprint(owner) != request_fingerprint("".join(owner.key_ids).encode())
    assert owner_fingerprint(owner) != owner_fingerprint(generate_signing_key().public)


@pytest.mark.parametrize("given", [REQUEST, REQUEST.replace(" ", ""), REQUEST.replace(" ", "-"), f" {REQUEST} "])
def test_spaces_and_hyphens_do_not_count(given: str) -> None:
    check_fingerprint(given, REQUEST, of="the request")


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("", "fingerprint.digits"),
        (REQUEST[:-1], "fingerprint.digits"),
        (REQUEST + "0", "fingerprint.digits"),
        ("x" * 40, "fingerprint.digits"),
        ("٣" * 40, "fingerprint.digits"),  # digits of another script
        (request_fingerprint(b"another"), "fingerprint.other"),
        (REQUEST[:-1] + str((int(REQUEST[-1]) + 1) % 10), "fingerprint.other"),
    ],
)
def test_a_part_of_a_fingerprint_or_another_is_refused(given: str, code: str) -> None:
    with pytest.raises(VerificationError) as refused:
        check_fingerprint(given, REQUEST, of="the request")
    assert refused.value.code == code
