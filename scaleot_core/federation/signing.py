"""Signed statements of the federation: nobody speaks in another's name, and nothing said for one end serves another.

An organisation signs with the key that the model owner knows from its enrolment. The server of the rounds signs with a
key of its own for each run, which the model owner's key has certified: whoever breaks into that server can ask for
training in this run and no more. It can sign neither bundle nor grant, and data owners go on checking what it asks.
"""

from datetime import datetime

from scaleot_core.bundle.canonical import read_document
from scaleot_core.bundle.envelope import Envelope, sign_statement, verify_statement
from scaleot_core.bundle.keys import SigningKey, VerifyingKey
from scaleot_core.errors import MalformedStatementError, VerificationError
from scaleot_core.federation.messages import (
    Receipt,
    RunCertificate,
    Statement,
    StatementKind,
    decode_statement,
    encode_statement,
)

MAX_SIGNED_BYTES = 32 * 1024
"""A statement of ``MAX_STATEMENT_BYTES`` in base64, and two signatures."""


def sign(statement: StatementKind, key: SigningKey) -> bytes:
    """Returns a statement in the envelope of its signatures."""
    return sign_statement(encode_statement(statement), _payload_type(type(statement)), key)


def open_signed(envelope: bytes, kind: type[Statement], signer: VerifyingKey) -> Statement:
    """Returns the statement of an envelope that ``signer`` has signed.

    Raises:
        VerificationError: ``statement.signature`` and others: it is no envelope, of another kind, or another's.
        MalformedStatementError: what was signed is no statement of this kind.
    """
    encoded = verify_statement(envelope, _payload_type(kind), signer, kind="statement", limit_bytes=MAX_SIGNED_BYTES)
    return decode_statement(encoded, kind)


def claimed(envelope: bytes) -> bytes:
    """Returns what an envelope says before anybody has verified it: whom to ask for the key, and no more.

    Raises:
        MalformedStatementError: it is no envelope.
    """
    try:
        return read_document(Envelope, envelope, kind="statement", limit_bytes=MAX_SIGNED_BYTES).payload
    except VerificationError as error:
        raise MalformedStatementError((), "a signed statement", str(error)) from error


def payload_type_of(envelope: bytes) -> str:
    """Returns of which kind an envelope claims to be; raises ``MalformedStatementError`` if it is none."""
    try:
        return read_document(Envelope, envelope, kind="statement", limit_bytes=MAX_SIGNED_BYTES).payloadType
    except VerificationError as error:
        raise MalformedStatementError((), "a signed statement", str(error)) from error


def certify_run(run: str, bundle_digest: str, key: VerifyingKey, *, owner: SigningKey, not_after: datetime) -> bytes:
    """Returns the model owner's certificate for the key of a run's server."""
    certificate = RunCertificate(run=run, bundle_digest=bundle_digest, verifying_key=key, not_after=not_after)
    return sign(certificate, owner)


def verify_run_certificate(certificate: bytes, owner: VerifyingKey, *, now: datetime) -> RunCertificate:
    """Returns a certificate of the model owner that holds now.

    Raises:
        VerificationError: ``certificate.signature`` and others if it is not the pinned owner's,
            ``certificate.expired`` if it is over.
    """
    try:
        encoded = verify_statement(
            certificate, _payload_type(RunCertificate), owner, kind="certificate", limit_bytes=MAX_SIGNED_BYTES
        )
        read = decode_statement(encoded, RunCertificate)
    except MalformedStatementError as error:
        raise VerificationError("certificate.fields", f"the run's certificate: {error}") from error
    if now > read.not_after:
        raise VerificationError(
            "certificate.expired", f"the certificate of run {read.run} ended at {read.not_after}; it is {now}"
        )
    return read


def open_receipt(envelope: bytes, signer: VerifyingKey) -> Receipt:
    """Returns a receipt that the run's server has signed; raises ``VerificationError`` for any other bytes."""
    try:
        return open_signed(envelope, Receipt, signer)
    except MalformedStatementError as error:
        raise VerificationError("receipt.fields", f"a receipt: {error}") from error


def is_kind(envelope: bytes, kind: type[Statement]) -> bool:
    """Whether an envelope claims to hold a statement of this kind; raises ``MalformedStatementError`` if it is none."""
    return payload_type_of(envelope) == _payload_type(kind)


def _payload_type(kind: type[StatementKind]) -> str:
    name, _, _ = str(kind.model_fields["type"].default).partition("/")
    return f"application/vnd.{name}+json"
