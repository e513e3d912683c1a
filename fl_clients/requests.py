"""What a server may ask at all: only what the pinned model owner lets it ask, in the run and with the bundle it names."""

from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from fl_clients.policy import DataOwnerFile
from fl_clients.releases import Releases
from scaleot_core.bundle import VerifyingKey, load_verifying_key
from scaleot_core.errors import VerificationError
from scaleot_core.federation.messages import Instructions, IntroductionRequest, Payload
from scaleot_core.federation.signing import open_receipt, open_signed, verify_run_certificate

Asked = TypeVar("Asked", IntroductionRequest, Instructions)


@dataclass(frozen=True)
class Asker:
    """The server of one run, as the model owner's certificate names it."""

    run: str
    bundle_digest: str
    key: VerifyingKey


def open_request(own: DataOwnerFile, payload: Payload, kind: type[Asked], *, now: datetime) -> tuple[Asked, Asker]:
    """Returns a request, and who asks.

    Raises:
        VerificationError: the certificate is not the pinned owner's, is over, or is for another run; or the request
            is not signed by the key that it names.
        MalformedStatementError: what was signed is malformed.
        InputError: the pinned key cannot be read.
    """
    certificate, key = verify_run_certificate(payload.certificate, load_verifying_key(own.owner_public_key), now=now)
    request = open_signed(payload.statement, kind, key)
    if request.run != certificate.run:
        raise VerificationError("certificate.run", f"expected a request in run {certificate.run}, got {request.run}")
    return request, Asker(certificate.run, certificate.bundle_digest, key)


def check_bundle(instructions: Instructions, asker: Asker) -> None:
    """Checks that the model owner lets this server work with the bundle it names; raises ``VerificationError``."""
    if instructions.bundle_digest != asker.bundle_digest:
        raise VerificationError(
            "certificate.bundle", f"expected the bundle {asker.bundle_digest}, got {instructions.bundle_digest}"
        )


def keep_receipts(own: DataOwnerFile, payload: Payload, asker: Asker) -> None:
    """Keeps the receipts that came with a request.

    Raises:
        VerificationError: one of them is not signed by the asker, or is another's, or of another run.
        OutputError: the disk is full or cannot be written.
    """
    for envelope in payload.receipts:
        receipt = open_receipt(envelope, asker.key)
        if (receipt.run, receipt.client) != (asker.run, own.organisation):
            raise VerificationError("receipt.client", f"expected a receipt for {own.organisation} in run {asker.run}")
        Releases(own.releases).note(receipt, envelope)
