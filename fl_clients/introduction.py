"""A data owner says who it is; that needs no PyTorch, which takes a new process seconds to load."""

from datetime import datetime
from pathlib import Path

from fl_clients.policy import read_data_owner_file
from fl_clients.requests import keep_receipts, open_request
from scaleot_core.bundle import load_signing_key
from scaleot_core.federation.messages import Introduction, IntroductionRequest, Payload
from scaleot_core.federation.signing import sign


def introduce(directory: Path, payload: Payload, *, now: datetime) -> Payload:
    """Answers who this data owner is, and keeps the receipts that came with the question.

    Raises:
        MalformedStatementError: the request is malformed.
        VerificationError: it does not come from the model owner's server.
        InputError: the data owner's file is missing or faulty.
        OutputError: a receipt cannot be written.
    """
    own = read_data_owner_file(directory)
    request, certificate = open_request(own, payload, IntroductionRequest, now=now)
    keep_receipts(own, payload, certificate)
    introduction = Introduction(run=request.run, nonce=request.nonce, client=own.organisation)
    return Payload(sign(introduction, load_signing_key(own.signing_key)))
