import base64
from typing import Any

import pytest

from scaleot_core.bundle import Recipient, VerifyingKey, generate_identity, generate_signing_key
from scaleot_core.bundle.canonical import Document, canonical_json, read_document, write_document
from scaleot_core.bundle.public_keys import RecipientField, VerifyingKeyField
from scaleot_core.errors import VerificationError


class Keys(Document):
    recipient: RecipientField
    verifying_key: VerifyingKeyField


def keys() -> Keys:
    return Keys(recipient=generate_identity().recipient, verifying_key=generate_signing_key().public)


def read(data: bytes) -> Keys:
    return read_document(Keys, data, kind="enrolment", limit_bytes=64_000)


def test_keys_come_back_from_a_document_as_they_went_in() -> None:
    written = keys()
    read_again = read(write_document(written))
    assert isinstance(read_again.recipient, Recipient) and isinstance(read_again.verifying_key, VerifyingKey)
    assert read_again == written
    assert read_again.verifying_key.key_ids == written.verifying_key.key_ids


@pytest.mark.parametrize("half", ["ed25519", "mldsa65"])
@pytest.mark.parametrize("value", ["", base64.b64encode(b"short").decode(), "not base64", 3, None])
def test_what_is_no_key_is_refused_with_our_own_error(half: str, value: Any) -> None:
    document = keys().model_dump(mode="json")
    document["verifying_key"][half] = value
    with pytest.raises(VerificationError, match="verifying_key"):
        read(canonical_json(document))
