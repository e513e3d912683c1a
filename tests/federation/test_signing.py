from datetime import UTC, datetime, timedelta

import pytest

from scaleot_core.bundle import generate_signing_key
from scaleot_core.bundle.envelope import sign_statement
from scaleot_core.errors import MalformedStatementError, VerificationError
from scaleot_core.federation.messages import Introduction, Receipt, Refusal, encode_statement
from scaleot_core.federation.signing import (
    MAX_SIGNED_BYTES,
    certify_run,
    claimed,
    is_kind,
    open_receipt,
    open_signed,
    payload_type_of,
    sign,
    verify_run_certificate,
)

KEY, OTHER = generate_signing_key(), generate_signing_key()
NOW = datetime(2027, 1, 1, tzinfo=UTC)
INTRODUCTION = Introduction(run="run-1", nonce="a" * 64, client="Klinik Süd")
RECEIPT = Receipt(run="run-1", round=2, client="Klinik Süd", status="accepted", update_sha256="b" * 64)


def test_a_statement_is_opened_with_its_signers_key_and_no_other() -> None:
    envelope = sign(INTRODUCTION, KEY)
    assert open_signed(envelope, Introduction, KEY.public) == INTRODUCTION
    assert claimed(envelope) == encode_statement(INTRODUCTION)
    with pytest.raises(VerificationError, match=r"statement\.signature"):
        open_signed(envelope, Introduction, OTHER.public)


def test_no_byte_of_a_signed_statement_can_be_changed() -> None:
    envelope = sign(RECEIPT, KEY)
    for place in range(0, len(envelope), 37):
        changed = bytearray(envelope)
        changed[place] ^= 1
        with pytest.raises(VerificationError):
            open_receipt(bytes(changed), KEY.public)


def test_a_statement_of_one_kind_never_passes_for_another() -> None:
    refusal = Refusal(nonce="a" * 64, code="data")
    assert is_kind(sign(refusal, KEY), Refusal) and not is_kind(sign(refusal, KEY), Introduction)
    with pytest.raises(VerificationError, match="another kind"):
        open_signed(sign(refusal, KEY), Introduction, KEY.public)
    relabelled = sign_statement(encode_statement(refusal), payload_type_of(sign(INTRODUCTION, KEY)), KEY)
    with pytest.raises(MalformedStatementError):
        open_signed(relabelled, Introduction, KEY.public)


def test_what_is_no_envelope_or_too_large_is_not_looked_into() -> None:
    for junk in (b"", b"{}", b" " * (MAX_SIGNED_BYTES + 1)):
        with pytest.raises(MalformedStatementError):
            claimed(junk)


def test_a_run_certificate_holds_for_the_owners_key_until_its_end() -> None:
    certificate = certify_run("run-1", "c" * 64, OTHER.public, owner=KEY, not_after=NOW)
    read = verify_run_certificate(certificate, KEY.public, now=NOW)
    assert (read.run, read.bundle_digest, read.verifying_key.key_ids) == ("run-1", "c" * 64, OTHER.public.key_ids)
    with pytest.raises(VerificationError, match=r"certificate\.signature"):
        verify_run_certificate(certificate, OTHER.public, now=NOW)
    with pytest.raises(VerificationError, match=r"certificate\.expired"):
        verify_run_certificate(certificate, KEY.public, now=NOW + timedelta(seconds=1))
