from datetime import timedelta
from pathlib import Path

import pytest

from fl_clients.acceptance import pinned_owner, read_federation, read_own_admission
from fl_server.enrolment import Addresses, approve, renew
from fl_server.owner_home import OwnerHome
from scaleot_core.bundle import generate_identity, load_identity, load_signing_key, load_verifying_key, save_identity
from scaleot_core.bundle.tls_files import read_tls_files
from scaleot_core.enrolment.admission import AdmissionContents, open_admission, write_admission
from scaleot_core.errors import InputError, VerificationError
from tests.support.enrolments import ADDRESSES, HOST, Enrolled, applicant_of, enrol, new_owner_home, now


@pytest.fixture
def owner(tmp_path: Path) -> OwnerHome:
    return new_owner_home(tmp_path / "owner")


@pytest.fixture
def clinic(owner: OwnerHome, tmp_path: Path) -> Enrolled:
    return enrol(owner, tmp_path / "clinic")


def refusal(enrolled: Enrolled, admission: bytes) -> str:
    before = {path.name: path.read_bytes() for path in enrolled.home.root.iterdir()}
    with pytest.raises(VerificationError) as refused:
        enrolled.accept(admission)
    assert {path.name: path.read_bytes() for path in enrolled.home.root.iterdir()} == before
    return refused.value.code


def test_an_accepted_admission_gives_the_home_all_it_needs_to_take_part(owner: OwnerHome, clinic: Enrolled) -> None:
    home = clinic.home
    federation = clinic.accept()
    assert read_federation(home) == federation
    assert (federation.organisation, federation.distribution) == ("clinic-a", ADDRESSES.distribution)
    assert federation.fleet == ADDRESSES.fleet
    assert pinned_owner(home) == load_verifying_key(owner.owner_public_key)
    credentials = read_tls_files(home.tls, now=now())
    assert credentials.authority == owner.server_tls.authority.read_bytes()
    assert home.repository_root.read_bytes() == (owner.root / "repository/metadata/1.root.json").read_bytes()


def test_a_renewed_admission_replaces_certificate_and_addresses_and_keeps_what_is_pinned(
    owner: OwnerHome, clinic: Enrolled
) -> None:
    clinic.accept()
    root, certificate = clinic.home.repository_root.read_bytes(), clinic.home.tls.certificate.read_bytes()
    later = now() + timedelta(days=80)
    renewed = renew(owner, "clinic-a", Addresses(f"{HOST}:1", f"{HOST}:2"), now=later)
    assert clinic.accept(renewed, at=later).fleet == f"{HOST}:2"
    assert clinic.home.tls.certificate.read_bytes() != certificate
    assert clinic.home.repository_root.read_bytes() == root
    read_tls_files(clinic.home.tls, now=later + timedelta(days=89))
    assert refusal(clinic, clinic.admission) == "admission.older"


def test_accepting_again_completes_what_a_crash_left(clinic: Enrolled) -> None:
    clinic.accept()
    for path in (clinic.home.federation, clinic.home.tls.certificate):
        path.unlink()
    with pytest.raises(InputError, match="`scaleot org accept` makes it"):
        read_federation(clinic.home)
    clinic.accept()
    read_federation(clinic.home)
    read_tls_files(clinic.home.tls, now=now())


def test_the_admission_of_another_organisation_or_request_is_refused(
    owner: OwnerHome, clinic: Enrolled, tmp_path: Path
) -> None:
    bank = enrol(owner, tmp_path / "bank", "bank")
    assert refusal(clinic, bank.admission) == "admission.organisation"
    namesake = enrol(new_owner_home(tmp_path / "other"), tmp_path / "namesake")
    assert refusal(clinic, namesake.admission) == "admission.request"


def test_another_owner_cannot_take_over_a_home_that_has_pinned_one(clinic: Enrolled, tmp_path: Path) -> None:
    clinic.accept()
    taken_over = foreign_admission(clinic, new_owner_home(tmp_path / "stranger"))
    assert refusal(clinic, taken_over) == "admission.owner"


def foreign_admission(enrolled: Enrolled, stranger: OwnerHome) -> bytes:
    """Returns what a stranger with the request of an organisation can make: an admission that is whole in itself."""
    return approve(stranger, applicant_of(enrolled.home), ADDRESSES, max_examples=1, now=now())


def test_an_admission_sealed_to_another_identity_is_refused(clinic: Enrolled) -> None:
    clinic.home.identity_key.unlink()
    save_identity(generate_identity(), clinic.home.identity_key)
    assert refusal(clinic, clinic.admission) == "admission.unwrap"


def test_a_certificate_for_another_key_name_or_authority_is_refused(
    owner: OwnerHome, clinic: Enrolled, tmp_path: Path
) -> None:
    bank = enrol(owner, tmp_path / "bank", "bank")
    stranger = new_owner_home(tmp_path / "stranger")
    own, theirs = contents(clinic), contents(bank)
    for changed in (
        {"certificate": theirs.certificate},
        {"authority": stranger.server_tls.authority.read_bytes()},
        {"certificate": b"no certificate"},
        {"authority": b""},
    ):
        forged = AdmissionContents(**{**own.model_dump(), **changed})
        assert refusal(clinic, resealed(owner, clinic, forged)) == "admission.certificate"


def test_a_certificate_that_is_not_valid_now_is_refused_and_says_what_to_do(clinic: Enrolled) -> None:
    with pytest.raises(VerificationError, match=r"set the clock, or have the model owner run `scaleot org renew`"):
        clinic.accept(at=now() + timedelta(days=91))
    assert not clinic.home.federation.exists()


def test_a_home_without_a_request_says_what_makes_it(clinic: Enrolled) -> None:
    clinic.home.request.unlink()
    with pytest.raises(InputError, match="`scaleot org init` makes it"):
        read_own_admission(clinic.home, clinic.admission)


def contents(enrolled: Enrolled) -> AdmissionContents:
    signed = read_own_admission(enrolled.home, enrolled.admission)
    return open_admission(signed, load_identity(enrolled.home.identity_key))


def resealed(owner: OwnerHome, enrolled: Enrolled, forged: AdmissionContents) -> bytes:
    applicant = applicant_of(enrolled.home)
    return write_admission(
        forged,
        organisation=applicant.organisation,
        request_sha256=applicant.request_sha256,
        recipient=applicant.recipient,
        owner=load_signing_key(owner.owner_key),
        now=now(),
    )
