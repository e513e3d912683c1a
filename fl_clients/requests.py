"""What a server may ask at all: what the pinned model owner lets it ask, in the run and with the bundle it names."""

from datetime import datetime
from typing import TypeVar

from fl_clients.policy import DataOwnerFile
from fl_clients.releases import Releases
from scaleot_core.bundle import load_verifying_key
from scaleot_core.errors import VerificationError
from scaleot_core.federation.messages import Instructions, IntroductionRequest, Payload, RunCertificate
from scaleot_core.federation.signing import open_receipt, open_signed, verify_run_certificate

Asked = TypeVar("Asked", IntroductionRequest, Instructions)


def open_request(
    own: DataOwnerFile, payload: Payload, kind: type[Asked], *, now: datetime
) -> tuple[Asked, RunCertificate]:
    """Returns a request, and by what right it is made.

    Raises:
        VerificationError: the certificate is not the pinned owner's, is over, or is for another run; or the request
            is not signed by the key that it names.
        MalformedStatementError: what was signed is malformed.
        InputError: the pinned key cannot be read.
    """
    certificate = verify_run_certificate(payload.certificate, load_verifying_key(own.owner_public_key), now=now)
    request = open_signed(payload.statement, kind, certificate.verifying_key)
    if request.run != certificate.run:
        raise VerificationError("certificate.run", f"expected a request in run {certificate.run}, got {request.run}")
    return request, certificate


def check_bundle(instructions: Instructions, certificate: RunCertificate) -> None:
    """Checks that the model owner lets this server work with the bundle it names; raises ``VerificationError``."""
    if instructions.bundle_digest != certificate.bundle_digest:
        raise VerificationError(
            "certificate.bundle", f"expected the bundle {certificate.bundle_digest}, got {instructions.bundle_digest}"
        )


def keep_receipts(own: DataOwnerFile, payload: Payload, certificate: RunCertificate) -> None:
    """Keeps the receipts that came with a request.

    Raises:
        VerificationError: one of them is not signed by this server, or is another's, or of another run.
        OutputError: the disk is full or cannot be written.
    """
    for envelope in payload.receipts:
        receipt = open_receipt(envelope, certificate.verifying_key)
        if (receipt.run, receipt.client) != (certificate.run, own.organisation):
            raise VerificationError(
                "receipt.client", f"expected a receipt for {own.organisation} in run {certificate.run}"
            )
        Releases(own.releases).note(receipt, envelope)
