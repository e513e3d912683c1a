"""Accepting an admission: from here on the data owner knows the federation, and believes its owner and no other."""

from datetime import datetime
from os.path import lexists
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fl_clients.data_owner_home import DataOwnerHome
from scaleot_core.bundle.canonical import Document, Instant, read_document, write_document
from scaleot_core.bundle.files import given_file, replace_file
from scaleot_core.bundle.key_files import load_identity, load_verifying_key, read_private_file, save_verifying_key
from scaleot_core.bundle.keys import VerifyingKey
from scaleot_core.enrolment.admission import Address, AdmissionContents, SignedAdmission, open_admission, read_admission
from scaleot_core.enrolment.request import read_request
from scaleot_core.enrolment.transport_keys import MemberName
from scaleot_core.errors import InputError, OutputError, VerificationError

MAX_FEDERATION_BYTES = 4096
_PUBLIC = 0o644


class Federation(Document):
    """The federation that a data owner was admitted to: its own name there, and both services as ``host:port``."""

    distribution: Address
    fleet: Address
    issued: Instant
    """When the admission was made."""
    organisation: MemberName
    type: Literal["scaleot.federation/1"] = "scaleot.federation/1"


def read_own_admission(home: DataOwnerHome, envelope: bytes) -> SignedAdmission:
    """Returns the admission that answers the request of this home; whose it is, its owner's fingerprint has to show.

    Raises:
        InputError: the home has no enrolment request.
        VerificationError: as ``read_admission``.
    """
    try:
        request = home.request.read_bytes()
    except OSError as error:
        raise InputError(f"{home.request} cannot be read: {error.strerror}; `scaleot org init` makes it") from error
    with given_file(home.request, "the request that `scaleot org init` wrote"):
        applicant = read_request(request)
    return read_admission(envelope, organisation=applicant.organisation, request_sha256=applicant.request_sha256)


def pinned_owner(home: DataOwnerHome) -> VerifyingKey | None:
    """Returns the owner's key that an earlier admission brought and that was compared then."""
    return load_verifying_key(home.owner_public_key) if lexists(home.owner_public_key) else None


def accept(home: DataOwnerHome, signed: SignedAdmission, *, now: datetime) -> Federation:
    """Puts into the home what an admission brings; the owner's fingerprint must be compared before.

    The file of the federation is written last, so that a crash before leaves a home that was not admitted yet or the
    one before; accepting again completes it.

    Raises:
        InputError: a private key cannot be read.
        VerificationError: ``admission.owner`` for an owner other than the pinned one, ``admission.older`` for one made
            before the last that was accepted, ``admission.unwrap`` if it is not sealed to this home's identity,
            ``admission.certificate`` if its certificate is not one for this home's key, valid now.
        OutputError: the home cannot be written.
    """
    pinned = pinned_owner(home)
    if pinned is not None and pinned != signed.owner:
        raise VerificationError(
            "admission.owner",
            f"the admission is another owner's than the one pinned in {home.owner_public_key}; for another federation "
            "make another home",
        )
    if lexists(home.federation) and read_federation(home).issued > signed.terms.issued:
        raise VerificationError("admission.older", "a newer admission was accepted before; ask for the newest one")
    contents = open_admission(signed, load_identity(home.identity_key))
    _check_certificate(home, contents, signed.terms.organisation, now)
    federation = Federation(
        distribution=contents.distribution,
        fleet=contents.fleet,
        issued=signed.terms.issued,
        organisation=signed.terms.organisation,
    )
    if pinned is None:
        save_verifying_key(signed.owner, home.owner_public_key)
    files = {home.tls.authority: contents.authority, home.tls.certificate: contents.certificate}
    if not lexists(home.repository_root):
        files[home.repository_root] = contents.repository_root  # a later root comes from the repository itself
    files[home.federation] = write_document(federation)
    for path, data in files.items():
        try:
            replace_file(path, data, mode=_PUBLIC)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}; accept the admission again") from error
    return federation


def read_federation(home: DataOwnerHome) -> Federation:
    """Returns what the accepted admission says; raises ``InputError`` if none was accepted."""
    try:
        data = home.federation.read_bytes()
    except OSError as error:
        raise InputError(
            f"{home.federation} cannot be read: {error.strerror}; `scaleot org accept` makes it from the admission "
            "that the model owner sends"
        ) from error
    return read_document(Federation, data, kind="admission", limit_bytes=MAX_FEDERATION_BYTES)


def _check_certificate(home: DataOwnerHome, contents: AdmissionContents, organisation: str, now: datetime) -> None:
    private_key = load_pem_private_key(read_private_file(home.tls.private_key), None)
    try:
        authority = x509.load_pem_x509_certificate(contents.authority)
        certificate = x509.load_pem_x509_certificate(contents.certificate)
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise VerificationError("admission.certificate", "its certificate is not one of its authority") from error
    names = [name.value for name in certificate.subject]
    if certificate.public_key() != private_key.public_key() or names != [organisation]:
        raise VerificationError("admission.certificate", "its certificate is for another key or organisation")
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise VerificationError(
            "admission.certificate",
            f"its certificate is valid from {certificate.not_valid_before_utc} to {certificate.not_valid_after_utc}, "
            f"and it is {now}: set the clock, or have the model owner run `scaleot org renew`",
        )
