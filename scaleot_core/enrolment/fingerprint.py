"""Fingerprints: digits that two people compare by telephone, so that a document or key is the one that was meant.

Forty decimal digits are 132 bits of a SHA-256: whoever wanted another document with the same fingerprint would have to
try some 2**132 of them. All must be compared. Digits need no list of words and are the same in every language.
"""

import hashlib

from scaleot_core.bundle.keys import VerifyingKey
from scaleot_core.errors import VerificationError

DIGITS = 40
_GROUP = 5


def request_fingerprint(request: bytes) -> str:
    """Returns the fingerprint of a whole enrolment request, for example ``12345 67890 ...``: 8 groups of 5 digits."""
    return _fingerprint(b"scaleot.fingerprint/1 enrolment\0" + request)


def owner_fingerprint(owner: VerifyingKey) -> str:
    """Returns the fingerprint of a model owner's public key."""
    return _fingerprint(b"scaleot.fingerprint/1 owner\0" + "".join(owner.key_ids).encode())


def check_fingerprint(given: str, expected: str, *, of: str) -> None:
    """Checks what the other side read out; spaces and hyphens in it do not count.

    Raises:
        VerificationError: ``fingerprint.digits`` for what is no fingerprint, ``fingerprint.other`` for another's.
    """
    digits = given.replace(" ", "").replace("-", "")
    if len(digits) != DIGITS or not (digits.isascii() and digits.isdigit()):
        raise VerificationError(
            "fingerprint.digits", f"expected the {DIGITS} digits of the fingerprint of {of}, got {given[:80]!r}"
        )
    if digits != expected.replace(" ", ""):
        raise VerificationError(
            "fingerprint.other",
            f"the fingerprint of {of} is {expected}, not the one given. If the other side reads out the digits that "
            "were given, then what you hold is not what they made: do not go on, ask for it by another way",
        )


def _fingerprint(data: bytes) -> str:
    number = int.from_bytes(hashlib.sha256(data).digest()) % 10**DIGITS
    digits = f"{number:0{DIGITS}d}"
    return " ".join(digits[start : start + _GROUP] for start in range(0, DIGITS, _GROUP))
