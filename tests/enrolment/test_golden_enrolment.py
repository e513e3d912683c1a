"""Request, admission, registry, audit log and signed head of every released format still open."""

import shutil
from pathlib import Path

import pytest

from fl_server.audit_log import AuditLog, verify_copy
from fl_server.registry import Registry, Status, read_changes
from scaleot_core.bundle import load_identity, load_verifying_key
from scaleot_core.enrolment.admission import open_admission, read_admission
from scaleot_core.enrolment.fingerprint import owner_fingerprint, request_fingerprint
from scaleot_core.enrolment.request import read_request
from tests.golden.make_enrolment import NOW
from tests.support.enrolments import ADDRESSES, MAX_EXAMPLES

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(params=["enrolment-1"])
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    directory = shutil.copytree(GOLDEN / request.param, tmp_path / "golden")
    (directory / "TEST-ONLY-identity.pem").chmod(0o600)  # a version control system does not keep this mode
    return directory


def test_fingerprints_stay_what_they_are(golden: Path) -> None:
    request = (golden / "enrolment.json").read_bytes()
    assert request_fingerprint(request) == "55618 38961 15977 50677 11675 82455 89567 34918"
    owner = load_verifying_key(golden / "owner.pub")
    assert owner_fingerprint(owner) == "98119 43564 98286 01629 25551 58285 94787 55449"


def test_the_golden_admission_answers_the_golden_request(golden: Path) -> None:
    applicant = read_request((golden / "enrolment.json").read_bytes())
    assert (applicant.organisation, applicant.created) == ("clinic-a", NOW)
    identity = load_identity(golden / "TEST-ONLY-identity.pem")
    assert applicant.recipient == identity.recipient
    signed = read_admission(
        (golden / "clinic-a.admission.json").read_bytes(),
        organisation=applicant.organisation,
        request_sha256=applicant.request_sha256,
    )
    assert signed.owner == load_verifying_key(golden / "owner.pub")
    contents = open_admission(signed, identity)
    assert (contents.distribution, contents.fleet) == (ADDRESSES.distribution, ADDRESSES.fleet)
    assert contents.certificate.startswith(b"-----BEGIN CERTIFICATE-----\n")


def test_the_golden_registry_tells_its_members(golden: Path) -> None:
    path = golden / "organisations.jsonl"
    assert [line.entry.type for line in read_changes(path)] == ["opened", "approved", "approved", "renewed", "revoked"]
    registry = Registry(path)
    applicant = read_request((golden / "enrolment.json").read_bytes())
    clinic, bank = registry.members()
    assert (clinic.name, clinic.status, clinic.max_examples) == ("clinic-a", Status.ACTIVE, MAX_EXAMPLES)
    assert clinic.verifying_key == applicant.verifying_key and clinic.recipient == applicant.recipient
    assert (bank.name, bank.revoked_from_round, len(bank.certificate_sha256s)) == ("bank", 3, 2)


def test_the_golden_audit_log_extends_its_signed_head_and_holds_the_registry(golden: Path) -> None:
    path = golden / "audit.jsonl"
    head = verify_copy(path, [golden / "head.dsse.json"], golden / "owner.pub")
    assert (head.number, head.sha256) == (6, "c903faee78f62ed004edfd94856df46da399298f37732c32f94f90d688f43b4e")
    events = AuditLog(path).events()
    assert events[-1].entry.body == {"round": 1, "digest": "ä"}
    assert events[-2].entry.body["sha256"] == Registry(golden / "organisations.jsonl").head.sha256
