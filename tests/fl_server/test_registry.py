from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest

from fl_server.registry import (
    Approved,
    Registry,
    Renewed,
    Revoked,
    Status,
    allowed_organisations,
    create_registry,
    read_changes,
)
from scaleot_core.bundle import generate_identity, generate_signing_key
from scaleot_core.enrolment.transport_keys import generate_transport_key, node_public_line
from scaleot_core.errors import ChainError, InputError

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
END = datetime(2027, 2, 23, 12, 0, tzinfo=UTC)


def approved(name: str) -> Approved:
    return Approved(
        certificate_not_after=END,
        certificate_sha256=sha256(name.encode()).hexdigest(),
        max_examples=100,
        node_public_key=node_public_line(generate_transport_key()),
        organisation=name,
        recipient=generate_identity().recipient,
        request_sha256="a" * 64,
        time=NOW,
        tls_public_key=generate_transport_key().public_key(),
        verifying_key=generate_signing_key().public,
    )


def revoked(name: str, from_round: int = 3) -> Revoked:
    return Revoked(from_round=from_round, organisation=name, reason="left the project", time=NOW)


def renewed(name: str) -> Renewed:
    return Renewed(certificate_not_after=END.replace(month=5), certificate_sha256="b" * 64, organisation=name, time=NOW)


CLINIC, BANK = approved("clinic-a"), approved("bank")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "organisations.jsonl"
    create_registry(path, generate_signing_key().public, now=NOW)
    return path


@pytest.fixture
def two(path: Path) -> Registry:
    registry = Registry(path)
    registry.append(CLINIC)
    registry.append(BANK)
    return registry


def test_a_new_registry_has_no_members(path: Path) -> None:
    registry = Registry(path)
    assert registry.members() == () and registry.member("clinic-a") is None
    assert registry.verifying_key("clinic-a") is None and not registry.is_active("clinic-a", 0)
    with pytest.raises(InputError, match="no organisation 'clinic-a' in the registry"):
        registry.max_examples("clinic-a")


def test_a_member_is_what_was_approved_also_after_reading_again(two: Registry, path: Path) -> None:
    for registry in (two, Registry(path)):
        member = registry.member("clinic-a")
        assert member is not None
        assert (member.name, member.status, member.revoked_from_round) == ("clinic-a", Status.ACTIVE, None)
        assert member.verifying_key == registry.verifying_key("clinic-a") == CLINIC.verifying_key
        assert member.recipient == CLINIC.recipient
        assert member.node_public_key == CLINIC.node_public_key
        assert member.tls_public_key == CLINIC.tls_public_key
        assert member.certificate_sha256s == (CLINIC.certificate_sha256,)
        assert (member.certificate_not_after, member.approved_at) == (END, NOW)
        assert registry.max_examples("clinic-a") == 100
        assert [one.name for one in registry.members()] == ["clinic-a", "bank"]
        assert registry.head.number == 3


def test_a_revocation_counts_from_its_round_on_and_for_its_member_alone(two: Registry) -> None:
    two.append(revoked("clinic-a", 3))
    assert [two.is_active("clinic-a", number) for number in (0, 2, 3, 4)] == [True, True, False, False]
    assert two.is_active("bank", 4)
    member = two.member("clinic-a")
    assert member is not None and member.status is Status.REVOKED and member.revoked_from_round == 3
    assert two.verifying_key("clinic-a") == CLINIC.verifying_key, "its earlier updates can still be verified"


def test_a_renewal_adds_a_certificate_and_changes_nothing_else(two: Registry) -> None:
    before = two.member("clinic-a")
    two.append(renewed("clinic-a"))
    after = two.member("clinic-a")
    assert before is not None and after is not None
    assert after.certificate_sha256s == (CLINIC.certificate_sha256, "b" * 64)
    assert after.certificate_not_after == END.replace(month=5)
    assert (after.verifying_key, after.approved_at) == (before.verifying_key, before.approved_at)


def test_one_process_sees_what_another_registry_object_appends(two: Registry, path: Path) -> None:
    Registry(path).append(revoked("bank", 0))
    assert not two.is_active("bank", 0)
    two.append(renewed("clinic-a"))
    with pytest.raises(InputError, match="bank is no active member"):
        two.append(renewed("bank"))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda: approved("clinic-a"), "the name clinic-a is taken"),
        (lambda: approved("Clinic-A"), "the name Clinic-A is taken, by clinic-a"),
        (lambda: approved("gone"), "the name gone is taken, by gone, and no name is used again"),
        (lambda: CLINIC.model_copy(update={"organisation": "copy"}), "copy has a key that clinic-a has"),
        (lambda: with_key_of_clinic("verifying_key"), "copy has a key that clinic-a has"),
        (lambda: with_key_of_clinic("recipient"), "copy has a key that clinic-a has"),
        (lambda: with_key_of_clinic("node_public_key"), "copy has a key that clinic-a has"),
        (lambda: with_key_of_clinic("tls_public_key"), "copy has a key that clinic-a has"),
        (lambda: revoked("stranger"), "stranger is no active member"),
        (lambda: revoked("gone"), "gone is no active member"),
        (lambda: renewed("gone"), "gone is no active member"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused_and_not_written(
    two: Registry, path: Path, change: Callable[[], Approved | Renewed | Revoked], fault: str
) -> None:
    two.append(approved("gone"))
    two.append(revoked("gone"))
    before = path.read_bytes()
    with pytest.raises(InputError, match=fault):
        two.append(change())
    assert path.read_bytes() == before
    two.append(approved("another"))


def with_key_of_clinic(field: str) -> Approved:
    return approved("copy").model_copy(update={field: getattr(CLINIC, field)})


def test_lines_tell_who_was_opened_approved_and_revoked(two: Registry, path: Path) -> None:
    two.append(revoked("bank"))
    assert [line.entry.type for line in read_changes(path)] == ["opened", "approved", "approved", "revoked"]


def test_the_distribution_service_lets_in_active_members_alone_and_at_once(two: Registry, path: Path) -> None:
    is_allowed = allowed_organisations(path)
    assert is_allowed("clinic-a") and is_allowed("bank")
    assert not is_allowed("stranger") and not is_allowed("CLINIC-A") and not is_allowed("")
    two.append(approved("later"))
    assert is_allowed("later")
    two.append(revoked("clinic-a", 1000))
    assert not is_allowed("clinic-a") and is_allowed("bank")


def test_a_registry_that_cannot_be_believed_or_read_lets_nobody_in(two: Registry, path: Path) -> None:
    is_allowed, content = allowed_organisations(path), path.read_bytes()
    assert is_allowed("bank")
    path.write_bytes(content + content.splitlines(keepends=True)[1])
    head = path.with_suffix(".head.json")
    head.write_bytes(head.read_bytes().replace(b'"number":3', b'"number":4'))
    assert not is_allowed("bank")
    with pytest.raises(ChainError, match="line 4"):
        allowed_organisations(path)
    path.write_bytes(content)
    head.write_bytes(head.read_bytes().replace(b'"number":4', b'"number":3'))
    other = allowed_organisations(path)
    path.unlink()
    assert not other("bank")
    path.write_bytes(content)
    assert other("bank"), "a file that comes back is believed again if it is the same"
