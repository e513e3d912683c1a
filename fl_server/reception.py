"""What one reply is worth: whose it is, what it says, and why it may not count."""

from dataclasses import dataclass

from fl_server.membership import Membership
from scaleot_core.bundle import VerifyingKey
from scaleot_core.errors import MalformedStatementError, Reason, UpdateRejectedError, VerificationError
from scaleot_core.federation.messages import (
    UNREAD_NONCE,
    Introduction,
    Payload,
    Refusal,
    UpdateStatement,
    decode_statement,
)
from scaleot_core.federation.signing import claimed, is_kind, open_signed
from scaleot_core.federation.validation import BoundUpdate, ExpectedUpdate, UnverifiedUpdate, bind_update


@dataclass(frozen=True)
class SignedRefusal:
    """An organisation's own word that it does not take part in this round."""

    code: str


def member_key(membership: Membership, client: str, round_number: int) -> VerifyingKey:
    """Returns the key of an organisation that takes part in this round.

    Raises:
        UpdateRejectedError: nobody has approved it (SIGNATURE), or it is revoked (REVOKED).
    """
    key = membership.verifying_key(client)
    if key is None:
        raise UpdateRejectedError(Reason.SIGNATURE, client=client, expected="an approved organisation", got="another")
    if not membership.is_active(client, round_number):
        raise UpdateRejectedError(Reason.REVOKED, client=client, expected="an active organisation", got="a revoked one")
    return key


def read_introduction(
    payload: Payload, label: str, membership: Membership, *, run: str, nonce: str, round_number: int
) -> str:
    """Returns the organisation that a node speaks for.

    Raises:
        UpdateRejectedError: it refuses (ERROR), or its answer is malformed (FORMAT), unsigned or by nobody known
            (SIGNATURE), by a revoked organisation (REVOKED), or for another request (BINDING).
    """
    try:
        _raise_if_unsigned_refusal(payload, label)
        statement = claimed(payload.statement)
        if is_kind(payload.statement, Refusal):
            code = decode_statement(statement, Refusal).code
            raise UpdateRejectedError(Reason.ERROR, client=label, expected="an introduction", got=f"a refusal: {code}")
        name = decode_statement(statement, Introduction).client
        introduction = open_signed(payload.statement, Introduction, member_key(membership, name, round_number))
    except VerificationError as error:
        raise _unsigned(label, error) from error
    except MalformedStatementError as error:
        raise UpdateRejectedError(Reason.FORMAT, client=label, expected=error.expected, got=error.got) from error
    if (introduction.run, introduction.nonce) != (run, nonce):
        raise UpdateRejectedError(Reason.BINDING, client=label, expected="this run and request", got="another")
    return introduction.client


def read_reply(payload: Payload, expected: ExpectedUpdate) -> BoundUpdate | SignedRefusal:
    """Returns a client's answer to a request to train, which it has signed for this request.

    Raises:
        UpdateRejectedError: it is none. That says nothing of the client: what is unsigned anybody may have sent, and
            what it signed for another request anybody may have kept.
    """
    client = expected.client
    try:
        _raise_if_unsigned_refusal(payload, client)
        if not is_kind(payload.statement, Refusal):
            return bind_update(UnverifiedUpdate(client, payload.statement, payload.tensors), expected)
        refusal = open_signed(payload.statement, Refusal, expected.signer)
    except (VerificationError, MalformedStatementError) as error:
        raise _unsigned(client, error) from error
    if refusal.nonce == UNREAD_NONCE:  # signed, but perhaps long ago and for another request
        raise UpdateRejectedError(Reason.ERROR, client=client, expected="an update", got=f"a refusal: {refusal.code}")
    if refusal.nonce != expected.nonce:
        raise UpdateRejectedError(Reason.BINDING, client=client, expected="the request's nonce", got="another")
    return SignedRefusal(refusal.code)


def stated_update(envelope: bytes) -> UpdateStatement:
    """Returns the statement of an envelope that this server has verified and stored."""
    return decode_statement(claimed(envelope), UpdateStatement)


def _raise_if_unsigned_refusal(payload: Payload, label: str) -> None:
    """A client that cannot read its own key says so unsigned: worth a word to people, and nothing else."""
    try:
        code = decode_statement(payload.statement, Refusal).code
    except MalformedStatementError:
        return
    raise UpdateRejectedError(Reason.SIGNATURE, client=label, expected="a signature", got=f"a bare refusal: {code}")


def _unsigned(label: str, error: VerificationError | MalformedStatementError) -> UpdateRejectedError:
    got = error.code if isinstance(error, VerificationError) else error.got
    return UpdateRejectedError(Reason.SIGNATURE, client=label, expected="its organisation's signature", got=got)
