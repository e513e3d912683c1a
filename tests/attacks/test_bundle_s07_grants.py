"""S07: a grant opens one bundle for one organisation with one identity until one day, and nothing else."""

import base64
import json
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from scaleot_core.bundle import (
    Recipient,
    VerifiedBundle,
    generate_identity,
    generate_signing_key,
    issue_grant,
    open_bundle,
    read_bundle,
    verify_bundle,
    verify_grant,
)
from scaleot_core.bundle.canonical import Json, canonical_json
from scaleot_core.bundle.envelope import sign_statement
from scaleot_core.bundle.grant import GRANT_TYPE
from scaleot_core.bundle.manifest import MANIFEST_TYPE
from scaleot_core.errors import VerificationError
from tests.support.bundles import CLINIC, END, NOW, Scene, scene
from tests.support.hpke_reference import reference_open


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return scene(tmp_path_factory.mktemp("s07"))


@pytest.fixture(scope="module")
def verified(made: Scene) -> VerifiedBundle:
    return verify_bundle(read_bundle(made.path), made.owner.public, now=NOW)


def refusal(made: Scene, verified: VerifiedBundle, grant: bytes) -> str:
    """The code with which both ways to use a grant refuse it."""
    codes = set()
    for use in (open_bundle, verify_grant):
        with pytest.raises(VerificationError) as caught:
            use(verified, grant, made.identity, organisation=CLINIC, now=NOW)
        codes.add(caught.value.code)
    (code,) = codes
    return code


def grant_for(made: Scene, **changes: object) -> bytes:
    settings = {"owner": made.owner, "organisation": CLINIC, "recipient": made.identity.recipient, "not_after": END}
    return issue_grant(made.sealed, **{**settings, **changes})  # type: ignore[arg-type]


def signed(made: Scene, **changes: Json) -> bytes:
    """The owner's own signature under a grant's text that was changed."""
    text = json.loads(base64.b64decode(json.loads(made.grant)["payload"]))
    return sign_statement(canonical_json({**text, **changes}), GRANT_TYPE, made.owner)


def test_a_good_grant_gives_the_data_key(made: Scene, verified: VerifiedBundle) -> None:
    key = verify_grant(verified, made.grant, made.identity, organisation=CLINIC, now=NOW)
    assert key.secret == made.sealed.data_key.secret


def test_the_transcription_of_the_specification_opens_a_grant(made: Scene) -> None:
    text = json.loads(base64.b64decode(json.loads(made.grant)["payload"]))
    terms = canonical_json({name: text[name] for name in ("bundle_id", "not_after", "org")})
    key = reference_open(base64.b64decode(text["enc"]), made.identity, b"scaleot.grant/1\x00" + terms)
    assert key == made.sealed.data_key.secret


def test_another_organisations_grant_is_refused(made: Scene, verified: VerifiedBundle) -> None:
    assert refusal(made, verified, grant_for(made, organisation="clinic-b")) == "grant.organisation"


def test_another_organisations_grant_relabelled_is_refused(made: Scene, verified: VerifiedBundle) -> None:
    other = json.loads(grant_for(made, organisation="clinic-b", recipient=generate_identity().recipient))
    text = base64.b64decode(other["payload"]).replace(b"clinic-b", CLINIC.encode())
    other["payload"] = base64.b64encode(text).decode()
    assert refusal(made, verified, canonical_json(other)) == "grant.signature"


def test_a_strangers_identity_opens_nothing(made: Scene, verified: VerifiedBundle) -> None:
    assert refusal(made, verified, grant_for(made, recipient=generate_identity().recipient)) == "grant.unwrap"


def test_half_an_identity_opens_nothing(made: Scene, verified: VerifiedBundle) -> None:
    stranger = generate_identity().recipient
    own = made.identity.recipient
    for recipient in (Recipient(own.mlkem768, stranger.x25519), Recipient(stranger.mlkem768, own.x25519)):
        assert refusal(made, verified, grant_for(made, recipient=recipient)) == "grant.unwrap"


def test_a_strangers_signature_opens_nothing(made: Scene, verified: VerifiedBundle) -> None:
    assert refusal(made, verified, grant_for(made, owner=generate_signing_key())) == "grant.signature"


def test_an_expired_grant_is_refused_from_its_end_on(made: Scene, verified: VerifiedBundle) -> None:
    assert refusal(made, verified, grant_for(made, not_after=NOW)) == "grant.expired"
    assert refusal(made, verified, grant_for(made, not_after=NOW - timedelta(days=1))) == "grant.expired"
    last_second = grant_for(made, not_after=NOW + timedelta(seconds=1))
    verify_grant(verified, last_second, made.identity, organisation=CLINIC, now=NOW)


def test_a_grant_of_another_bundle_of_the_same_owner_is_refused(
    made: Scene, verified: VerifiedBundle, tmp_path: Path
) -> None:
    other = scene(tmp_path)
    grant = issue_grant(
        other.sealed, owner=made.owner, organisation=CLINIC, recipient=made.identity.recipient, not_after=END
    )
    assert refusal(made, verified, grant) == "grant.bundle"


def test_terms_the_key_was_not_sealed_under_do_not_open_it_even_if_they_are_signed(
    made: Scene, verified: VerifiedBundle
) -> None:
    longer = "2028-05-01T00:00:00+00:00"
    assert refusal(made, verified, signed(made, not_after=longer)) == "grant.unwrap"
    other = json.loads(base64.b64decode(json.loads(grant_for(made, organisation="clinic-b"))["payload"]))
    assert refusal(made, verified, signed(made, enc=other["enc"])) == "grant.unwrap"


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "scaleot.grant/2"},
        {"extra": 1},
        {"enc": ""},
        {"enc": base64.b64encode(bytes(1167)).decode()},
        {"enc": 5},
        {"org": ""},
        {"org": 5},
        {"not_after": "never"},
        {"bundle_id": "x"},
    ],
)
def test_a_grant_of_another_shape_is_refused_even_if_it_is_signed(
    made: Scene, verified: VerifiedBundle, changes: dict[str, Json]
) -> None:
    assert refusal(made, verified, signed(made, **changes)) == "grant.fields"


def test_a_signed_manifest_is_no_grant_and_a_grant_is_no_manifest(
    made: Scene, verified: VerifiedBundle, tmp_path: Path
) -> None:
    assert refusal(made, verified, made.envelope.read_bytes()) == "grant.signature"
    text = base64.b64decode(json.loads(made.grant)["payload"])
    assert refusal(made, verified, sign_statement(text, MANIFEST_TYPE, made.owner)) == "grant.signature"
    other = scene(tmp_path)
    other.envelope.write_bytes(other.grant)
    with pytest.raises(VerificationError, match=r"bundle\.signature"):
        other.open()


def test_nothing_is_sealed_to_a_recipient_key_that_gives_no_secret(made: Scene) -> None:
    useless = Recipient(MLKEM768PrivateKey.generate().public_key(), X25519PublicKey.from_public_bytes(bytes(32)))
    with pytest.raises(VerificationError, match=r"key\.recipient"):
        grant_for(made, recipient=useless)


def test_a_bundle_shows_nobody_who_may_open_it(made: Scene) -> None:
    before = {path: path.read_bytes() for path in made.path.rglob("*") if path.is_file()}
    grant_for(made, organisation="clinic-b", recipient=generate_identity().recipient)
    assert {path: path.read_bytes() for path in made.path.rglob("*") if path.is_file()} == before
    for content in before.values():
        assert CLINIC.encode() not in content
