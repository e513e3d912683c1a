from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from fl_server.audit_log import AuditLog
from fl_server.chain_file import head_path
from fl_server.enrolment import REGISTRY_EVENT, Addresses, approve, renew, revoke
from fl_server.owner_home import OwnerHome
from fl_server.registry import Registry
from fl_server.repository import rotate
from scaleot_core.bundle import load_identity
from scaleot_core.bundle.canonical import Json
from scaleot_core.bundle.repository import Role
from scaleot_core.enrolment.admission import AdmissionContents, open_admission, read_admission
from scaleot_core.errors import ChainError, InputError
from tests.support.enrolments import (
    ADDRESSES,
    HOST,
    MAX_EXAMPLES,
    Enrolled,
    applicant_of,
    enrol,
    new_data_owner_home,
    new_owner_home,
    now,
)


@pytest.fixture
def owner(tmp_path: Path) -> OwnerHome:
    return new_owner_home(tmp_path / "owner")


def contents(enrolled: Enrolled, admission: bytes | None = None) -> AdmissionContents:
    applicant = applicant_of(enrolled.home)
    signed = read_admission(
        admission or enrolled.admission,
        organisation=applicant.organisation,
        request_sha256=applicant.request_sha256,
    )
    return open_admission(signed, load_identity(enrolled.home.identity_key))


def decisions(owner: OwnerHome) -> list[dict[str, Json]]:
    return [event.entry.body for event in AuditLog(owner.audit_log).events() if event.entry.type == REGISTRY_EVENT]


def test_an_approved_organisation_is_a_member_with_the_keys_of_its_request(owner: OwnerHome, tmp_path: Path) -> None:
    enrolled = enrol(owner, tmp_path / "clinic")
    applicant, member = applicant_of(enrolled.home), Registry(owner.registry).known_member("clinic-a")
    assert member.verifying_key == applicant.verifying_key
    assert member.recipient == applicant.recipient
    assert member.node_public_key == applicant.node_public_key
    assert member.tls_public_key == applicant.tls_public_key
    assert (member.max_examples, member.request_sha256) == (MAX_EXAMPLES, applicant.request_sha256)
    assert abs(member.certificate_not_after - now() - timedelta(days=90)) < timedelta(minutes=1)


def test_the_admission_brings_addresses_authority_and_the_newest_root(owner: OwnerHome, tmp_path: Path) -> None:
    first = contents(enrol(owner, tmp_path / "clinic"))
    assert (first.distribution, first.fleet) == (ADDRESSES.distribution, ADDRESSES.fleet)
    assert first.authority == owner.server_tls.authority.read_bytes()
    metadata = owner.root / "repository" / "metadata"
    assert first.repository_root == (metadata / "1.root.json").read_bytes()
    rotate(owner.root, Role.ROOT, now=now())
    second = contents(enrol(owner, tmp_path / "bank", "bank"))
    assert second.repository_root == (metadata / "2.root.json").read_bytes()


def test_every_decision_is_in_the_audit_log_with_the_digest_of_its_line(owner: OwnerHome, tmp_path: Path) -> None:
    enrol(owner, tmp_path / "clinic")
    renew(owner, "clinic-a", ADDRESSES, now=now())
    revoke(owner, "clinic-a", from_round=4, reason="contract ended", now=now())
    noted = decisions(owner)
    assert [(body["change"], body["number"], body["organisation"]) for body in noted] == [
        ("approved", 2, "clinic-a"),
        ("renewed", 3, "clinic-a"),
        ("revoked", 4, "clinic-a"),
    ]
    assert (noted[2]["from_round"], noted[2]["reason"]) == (4, "contract ended")
    assert noted[2]["sha256"] == Registry(owner.registry).head.sha256


def test_a_decision_that_a_crash_kept_out_of_the_audit_log_is_noted_by_the_next(
    owner: OwnerHome, tmp_path: Path
) -> None:
    before = owner.audit_log.read_bytes(), head_path(owner.audit_log).read_bytes()
    enrol(owner, tmp_path / "clinic")
    owner.audit_log.write_bytes(before[0])  # as if the process had been killed between the two files
    head_path(owner.audit_log).write_bytes(before[1])
    assert decisions(owner) == []
    enrol(owner, tmp_path / "bank", "bank")
    assert [body["organisation"] for body in decisions(owner)] == ["clinic-a", "bank"]
    revoke(owner, "bank", from_round=0, reason="tested", now=now())
    assert [body["number"] for body in decisions(owner)] == [2, 3, 4]


def test_a_member_whose_admission_was_lost_gets_another(owner: OwnerHome, tmp_path: Path) -> None:
    enrolled = enrol(owner, tmp_path / "clinic")
    again = renew(owner, "clinic-a", Addresses(f"{HOST}:1", f"{HOST}:2"), now=now())
    assert contents(enrolled, again).fleet == f"{HOST}:2"
    assert contents(enrolled, again).certificate != contents(enrolled).certificate
    assert len(Registry(owner.registry).known_member("clinic-a").certificate_sha256s) == 2


@pytest.mark.parametrize(
    ("distribution", "fleet", "fault"),
    [
        ("other.example.org:1", f"{HOST}:2", r"the server's certificate is for fed\.example\.org.*authority renew"),
        (f"{HOST}:1", "[2001:db8::1]:2", "the server's certificate is for"),
        (HOST, f"{HOST}:2", "expected HOST:PORT"),
        (f"{HOST}:1", "", "expected HOST:PORT"),
        (f"{HOST}:1", "[::g]:1", "expected HOST:PORT"),
        (f"{HOST}:1", f"https://{HOST}:2", "expected HOST:PORT"),
    ],
)
def test_an_address_where_tls_would_fail_is_refused_before_anything_is_written(
    owner: OwnerHome, tmp_path: Path, distribution: str, fleet: str, fault: str
) -> None:
    applicant, before = applicant_of(new_data_owner_home(tmp_path / "clinic")), owner.registry.read_bytes()
    with pytest.raises(InputError, match=fault):
        approve(owner, applicant, Addresses(distribution, fleet), max_examples=1, now=now())
    assert owner.registry.read_bytes() == before


def test_a_loopback_address_in_brackets_is_one_of_the_certificates(owner: OwnerHome, tmp_path: Path) -> None:
    applicant = applicant_of(new_data_owner_home(tmp_path / "clinic"))
    approve(owner, applicant, Addresses("[::1]:1", "localhost:2"), max_examples=1, now=now())


@pytest.mark.parametrize(
    ("decide", "fault"),
    [
        (lambda owner: revoke(owner, "stranger", from_round=1, reason="x", now=now()), "no organisation 'stranger'"),
        (lambda owner: renew(owner, "stranger", ADDRESSES, now=now()), "no organisation 'stranger'"),
        (lambda owner: revoke(owner, "clinic-a", from_round=1, reason="", now=now()), "revocation, reason"),
        (lambda owner: revoke(owner, "clinic-a", from_round=-1, reason="x", now=now()), "revocation, from_round"),
    ],
)
def test_a_decision_about_nobody_or_without_a_reason_changes_nothing(
    owner: OwnerHome, tmp_path: Path, decide: Callable[[OwnerHome], object], fault: str
) -> None:
    enrol(owner, tmp_path / "clinic")
    before = owner.registry.read_bytes(), owner.audit_log.read_bytes()
    with pytest.raises(InputError, match=fault):
        decide(owner)
    assert (owner.registry.read_bytes(), owner.audit_log.read_bytes()) == before


def test_nothing_is_decided_while_the_audit_log_cannot_be_believed(owner: OwnerHome, tmp_path: Path) -> None:
    enrol(owner, tmp_path / "clinic")
    owner.audit_log.write_bytes(owner.audit_log.read_bytes().replace(b"approved", b"APPROVED"))
    before = owner.registry.read_bytes()
    with pytest.raises(ChainError, match=r"audit log .*, line 2"):
        revoke(owner, "clinic-a", from_round=1, reason="x", now=now())
    assert owner.registry.read_bytes() == before
