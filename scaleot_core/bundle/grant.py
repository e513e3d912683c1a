"""Grants: what lets one organisation open one bundle until one day.

A grant holds the bundle's data key, sealed to one recipient by HPKE (RFC 9180) with the X-Wing KEM, and is signed by
the owner, since HPKE's base mode says nothing of who sealed. Bundle, organisation and end stand in the signed text and
are bound into the encryption too. Grants are handed out one by one and never lie in a bundle, so a bundle does not show
who else may open it.
"""

from datetime import datetime
from typing import Annotated, Literal

from cryptography.exceptions import InvalidTag
from pydantic import AfterValidator, Field, ValidationError

from scaleot_core.bundle.canonical import Base64, Document, Instant, read_document, write_document
from scaleot_core.bundle.envelope import sign_statement, verify_statement
from scaleot_core.bundle.keys import HPKE_SUITE, DataKey, Identity, Recipient, SigningKey, VerifyingKey
from scaleot_core.bundle.manifest import BundleId, OuterManifest
from scaleot_core.bundle.seal import SealedBundle, whole_second
from scaleot_core.bundle.verify import VerifiedBundle, check_is_current
from scaleot_core.errors import InputError, VerificationError

GRANT_TYPE = "application/vnd.scaleot.grant+json"
MAX_GRANT_BYTES = 16 * 1024
SEALED_KEY_BYTES = 1168  # 1120 of the X-Wing encapsulation, 32 of the data key, 16 of the tag
MAX_ORGANISATION_LENGTH = 200


def _printable(organisation: str) -> str:
    if not organisation.isprintable():
        raise ValueError("expected printable characters")
    return organisation


Organisation = Annotated[str, Field(min_length=1, max_length=MAX_ORGANISATION_LENGTH), AfterValidator(_printable)]


def _of_sealed_key_size(sealed_key: bytes) -> bytes:
    if len(sealed_key) != SEALED_KEY_BYTES:
        raise ValueError(f"expected {SEALED_KEY_BYTES} bytes")
    return sealed_key


SealedKey = Annotated[Base64, AfterValidator(_of_sealed_key_size)]


class Terms(Document):
    """What a grant says in clear, and what its encryption is bound to."""

    bundle_id: BundleId
    not_after: Instant
    org: Organisation


class Grant(Document):
    """The signed text of a grant: its terms and the data key sealed under them."""

    bundle_id: BundleId
    enc: SealedKey
    not_after: Instant
    org: Organisation
    type: Literal["scaleot.grant/1"]


def issue_grant(
    sealed: SealedBundle, *, owner: SigningKey, organisation: str, recipient: Recipient, not_after: datetime
) -> bytes:
    """Returns the grant that lets one organisation open a bundle until ``not_after``, which carries a time zone.

    ``owner`` is the key that sealed the bundle. Raises ``InputError`` for an organisation's name or an end that
    cannot stand in a grant, ``VerificationError`` (``key.recipient``) for a public key that nothing can be sealed to.
    """
    end = whole_second(not_after)
    try:
        terms = Terms(bundle_id=sealed.bundle_id, not_after=end, org=organisation)
    except ValidationError as error:
        raise InputError(f"organisation {organisation[:80]!r}: {error.errors()[0]['msg']}") from error
    try:
        sealed_key = HPKE_SUITE.encrypt(sealed.data_key.secret, recipient.hpke_key, info=_binding(terms))
    except ValueError as error:
        raise VerificationError("key.recipient", f"nothing can be sealed to the key of {organisation}") from error
    grant = Grant(bundle_id=sealed.bundle_id, not_after=end, org=organisation, enc=sealed_key, type="scaleot.grant/1")
    return sign_statement(write_document(grant), GRANT_TYPE, owner)


def verify_grant(
    bundle: VerifiedBundle, grant: bytes, identity: Identity, *, organisation: str, now: datetime
) -> DataKey:
    """Returns a bundle's data key if the owner granted this bundle to this organisation and identity, and still does.

    ``now`` carries a time zone. Decrypts nothing of the bundle. Raises ``VerificationError``: ``grant.size``,
    ``grant.json``, ``grant.fields``, ``grant.signature`` for what is no grant of the bundle's owner, then
    ``grant.organisation``, ``grant.bundle``, ``grant.expired``, ``bundle.expired``, and ``grant.unwrap`` if it is
    sealed to another identity.
    """
    stated = check_grant(grant, bundle.manifest, bundle.owner, organisation=organisation, now=now)
    terms = Terms(bundle_id=stated.bundle_id, not_after=stated.not_after, org=stated.org)
    try:
        return DataKey(HPKE_SUITE.decrypt(stated.enc, identity.hpke_key, info=_binding(terms)))
    except (InvalidTag, ValueError) as error:
        raise VerificationError("grant.unwrap", "the grant is not sealed to this identity") from error


def check_grant(
    grant: bytes, manifest: OuterManifest, owner: VerifyingKey, *, organisation: str, now: datetime
) -> Grant:
    """Returns a grant that the owner signed for this organisation and the bundle of a verified manifest.

    What an organisation can know of a grant before it has the bundle; whether it is sealed to its identity is not
    among that. ``now`` carries a time zone. Raises ``VerificationError`` as ``verify_grant`` does, but for
    ``grant.unwrap``.
    """
    statement = verify_statement(grant, GRANT_TYPE, owner, kind="grant", limit_bytes=MAX_GRANT_BYTES)
    stated = read_document(Grant, statement, kind="grant", limit_bytes=MAX_GRANT_BYTES)
    if stated.org != organisation:
        raise VerificationError("grant.organisation", f"expected a grant for {organisation}, got one for {stated.org}")
    if stated.bundle_id != manifest.bundle_id:
        raise VerificationError("grant.bundle", f"expected a grant for bundle {manifest.bundle_id}, got another one's")
    if now >= stated.not_after:
        raise VerificationError("grant.expired", f"the grant could be used until {stated.not_after}; it is {now}")
    check_is_current(manifest, now)
    return stated


def _binding(terms: Terms) -> bytes:
    """HPKE's ``info``: ties the sealed key to what the grant says in clear."""
    return b"scaleot.grant/1\0" + write_document(terms)
