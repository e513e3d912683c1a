import base64
import json

import pytest
from securesystemslib.dsse import Envelope as IndependentEnvelope
from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]

from scaleot_core.bundle import VerifyingKey, generate_signing_key
from scaleot_core.bundle.canonical import Json, canonical_json
from scaleot_core.bundle.envelope import sign_statement, verify_statement
from scaleot_core.bundle.keys import SigningKey
from scaleot_core.errors import VerificationError

KIND = "application/vnd.example+json"
OWNER = generate_signing_key()
STRANGER = generate_signing_key()
STATEMENT = b'{"hello":"world"}'
SIGNED = sign_statement(STATEMENT, KIND, OWNER)


def verify(envelope: bytes, owner: VerifyingKey = OWNER.public, payload_type: str = KIND) -> bytes:
    return verify_statement(envelope, payload_type, owner, kind="grant", limit_bytes=100_000)


def refusal(envelope: bytes, owner: VerifyingKey = OWNER.public, payload_type: str = KIND) -> str:
    with pytest.raises(VerificationError) as caught:
        verify(envelope, owner, payload_type)
    return caught.value.code


def edited(**changes: Json) -> bytes:
    return canonical_json({**json.loads(SIGNED), **changes})


def test_a_signed_statement_is_read_back() -> None:
    assert verify(SIGNED) == STATEMENT


def test_a_dsse_library_accepts_the_ed25519_signature() -> None:
    key = SSlibKey.from_crypto(OWNER.ed25519.public_key(), keyid=OWNER.public.key_ids[0])
    independent = IndependentEnvelope.from_dict(json.loads(SIGNED))
    assert independent.payload == STATEMENT
    assert list(independent.verify([key], 1)) == [OWNER.public.key_ids[0]]


def test_both_signatures_are_over_the_same_pre_authentication_encoding() -> None:
    message = b"DSSEv1 28 application/vnd.example+json 17 " + STATEMENT
    first, second = (base64.b64decode(one["sig"]) for one in json.loads(SIGNED)["signatures"])
    OWNER.ed25519.public_key().verify(first, message)
    OWNER.mldsa65.public_key().verify(second, message)


def test_another_owners_signature_is_refused() -> None:
    assert refusal(SIGNED, STRANGER.public) == "grant.signature"


@pytest.mark.parametrize("stolen", ["ed25519", "mldsa65"])
def test_one_stolen_key_is_not_enough(stolen: str) -> None:
    thief = (
        SigningKey(OWNER.ed25519, STRANGER.mldsa65)
        if stolen == "ed25519"
        else SigningKey(STRANGER.ed25519, OWNER.mldsa65)
    )
    forged = json.loads(sign_statement(STATEMENT, KIND, thief))
    assert refusal(canonical_json(forged)) == "grant.signature"
    for signature, key_id in zip(forged["signatures"], OWNER.public.key_ids, strict=True):
        signature["keyid"] = key_id
    assert refusal(canonical_json(forged)) == "grant.signature"


def test_a_signature_left_out_doubled_swapped_or_added_is_refused() -> None:
    first, second = json.loads(SIGNED)["signatures"]
    third = json.loads(sign_statement(STATEMENT, KIND, STRANGER))["signatures"][0]
    for signatures in ([], [first], [second], [first, second, third]):
        assert refusal(edited(signatures=signatures)) == "grant.fields"
    for signatures in ([first, first], [second, second], [second, first], [third, second], [first, third]):
        assert refusal(edited(signatures=signatures)) == "grant.signature"


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    "sig", ["", "AAAA", base64.b64encode(bytes(64)).decode(), base64.b64encode(bytes(3309)).decode()]
)
def test_a_signature_that_does_not_hold_is_refused_whatever_its_length(place: int, sig: str) -> None:
    signatures = json.loads(SIGNED)["signatures"]
    signatures[place]["sig"] = sig
    assert refusal(edited(signatures=signatures)) == "grant.signature"


def test_a_changed_statement_is_refused() -> None:
    assert refusal(edited(payload=base64.b64encode(STATEMENT + b" ").decode())) == "grant.signature"


def test_a_statement_of_another_kind_is_refused_even_if_it_is_signed() -> None:
    assert refusal(SIGNED, payload_type="application/vnd.other+json") == "grant.signature"
    assert refusal(edited(payloadType="application/vnd.other+json")) == "grant.signature"
    assert (
        refusal(edited(payloadType="application/vnd.other+json"), payload_type="application/vnd.other+json")
        == "grant.signature"
    )


def test_a_byte_changed_anywhere_in_an_envelope_is_refused() -> None:
    for place in [*range(200), *range(200, len(SIGNED), 5)]:
        changed = bytearray(SIGNED)
        changed[place] ^= 1
        assert refusal(bytes(changed)).startswith("grant."), place


def test_base64_with_unused_bits_set_is_refused() -> None:
    text = json.loads(SIGNED)["signatures"][0]["sig"]
    assert text.endswith("==")  # 64 bytes leave 4 unused bits
    other = text[:-3] + chr(ord(text[-3]) + 1) + "=="
    assert base64.b64decode(other) == base64.b64decode(text)
    signatures = json.loads(SIGNED)["signatures"]
    signatures[0]["sig"] = other
    assert refusal(edited(signatures=signatures)) == "grant.fields"


def test_envelopes_of_another_shape_are_refused() -> None:
    value = json.loads(SIGNED)
    others: tuple[dict[str, Json], ...] = (
        {"payload": 1},
        {"payload": "%"},
        {"payload": None},
        {"payloadType": 1},
        {"signatures": {}},
        {"extra": 1},
    )
    for changes in others:
        assert refusal(edited(**changes)) == "grant.fields"
    for name in value:
        assert refusal(canonical_json({key: value[key] for key in value if key != name})) == "grant.fields"
    assert refusal(json.dumps(value).encode()) == "grant.json"
    assert refusal(b"[" * 99_999) == "grant.json"
    assert refusal(b" " * 100_001) == "grant.size"
