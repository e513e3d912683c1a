"""S26 of the threat model, what the registry decides: a revoked organisation is out at once, and it shows.

Its certificate stays valid for up to 90 days, and its keys are as good as before; so nothing may rest on them alone.
Whether a round refuses its update is asked of ``Registry.is_active``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fl_clients.grpc_source import grpc_source
from fl_clients.receive import receive
from fl_clients.sources import Source
from fl_server.audit_log import AuditLog
from fl_server.distribution import serve_bundles
from fl_server.enrolment import approve, renew, revoke
from fl_server.grants import issue_grants
from fl_server.owner_home import OwnerHome
from fl_server.published_index import published_index
from fl_server.registry import Registry, Status, allowed_organisations
from scaleot_core.bundle import generate_signing_key, load_identity, load_signing_key
from scaleot_core.bundle.tls_files import read_tls_files
from scaleot_core.errors import FetchError, InputError, VerificationError
from scaleot_core.progress import SilentReporter
from tests.support.bundles import FILES
from tests.support.enrolments import ADDRESSES, Enrolled, applicant_of, enrol, new_data_owner_home, new_owner_home, now
from tests.support.owner_homes import opened, publish_small_version, received


@pytest.fixture
def owner(tmp_path: Path) -> OwnerHome:
    """A home that has published version 1 of a small emulator."""
    home = new_owner_home(tmp_path / "owner")
    publish_small_version(home.root)
    return home


@pytest.fixture
def clinic(owner: OwnerHome, tmp_path: Path) -> Enrolled:
    enrolled = enrol(owner, tmp_path / "clinic")
    enrolled.accept()
    return enrolled


def grant(owner: OwnerHome) -> None:
    members = Registry(owner.registry).members()
    issue_grants(owner.root, {one.name: one.recipient for one in members if one.status is Status.ACTIVE})


@contextmanager
def serving(owner: OwnerHome, clinic: Enrolled) -> Iterator[Source]:
    """The owner's service under its own certificate, and the clinic's connection under the one it was admitted with."""
    is_allowed = allowed_organisations(owner.registry)
    with (
        serve_bundles(published_index(owner.root), "127.0.0.1:0", tls=owner.server_tls, is_allowed=is_allowed) as port,
        grpc_source(f"127.0.0.1:{port}", clinic.home.tls) as source,
    ):
        yield source


def fetch(owner: OwnerHome, clinic: Enrolled, source: Source) -> dict[str, bytes]:
    receive(
        source,
        clinic.home.root,
        organisation="clinic-a",
        now=now(),
        deadline_seconds=10,
        reporter=SilentReporter(),
    )
    return opened(clinic.home.root, load_identity(clinic.home.identity_key), load_signing_key(owner.owner_key))


def test_s26_a_revoked_organisation_is_cut_off_in_the_middle_of_its_connection(
    owner: OwnerHome, clinic: Enrolled
) -> None:
    grant(owner)
    with serving(owner, clinic) as source:
        assert fetch(owner, clinic, source) == FILES
        revoke(owner, "clinic-a", from_round=7, reason="left", now=now())
        with pytest.raises(FetchError, match="'clinic-a' is unknown here, or revoked"):
            fetch(owner, clinic, source)
    read_tls_files(clinic.home.tls, now=now())  # its certificate is still good: the registry alone keeps it out
    with serving(owner, clinic) as source, pytest.raises(FetchError, match="is unknown here, or revoked"):
        fetch(owner, clinic, source)


def test_s26_the_next_emulator_cannot_be_opened_with_what_a_revoked_organisation_has(
    owner: OwnerHome, clinic: Enrolled, tmp_path: Path
) -> None:
    grant(owner)
    with serving(owner, clinic) as source:
        fetch(owner, clinic, source)
    revoke(owner, "clinic-a", from_round=0, reason="left", now=now())
    publish_small_version(owner.root)
    grant(owner)
    assert not [path for path in (owner.root / "grants").rglob("*") if "clinic-a" in path.name]
    with pytest.raises(VerificationError, match=r"grant\.bundle"):  # the ciphertext from a mirror, its old grant
        received(clinic.home.root, owner.root / "repository")


def test_s26_updates_count_for_rounds_before_the_revocation_alone(owner: OwnerHome, clinic: Enrolled) -> None:
    registry = Registry(owner.registry)
    assert registry.is_active("clinic-a", 7)
    revoke(owner, "clinic-a", from_round=7, reason="left", now=now())
    assert [registry.is_active("clinic-a", number) for number in (6, 7, 8)] == [True, False, False]


def test_s26_the_revocation_is_in_the_audit_log_under_the_owners_signed_head(
    owner: OwnerHome, clinic: Enrolled
) -> None:
    revoke(owner, "clinic-a", from_round=7, reason="left", now=now())
    last = AuditLog(owner.audit_log).events()[-1]
    assert last.entry.body["change"] == "revoked" and last.entry.body["from_round"] == 7
    assert last.sha256 == AuditLog(owner.audit_log).head.sha256


def test_s26_a_revoked_organisation_does_not_come_back_under_its_name_or_its_keys(
    owner: OwnerHome, clinic: Enrolled, tmp_path: Path
) -> None:
    applicant = applicant_of(clinic.home)
    revoke(owner, "clinic-a", from_round=7, reason="its keys were stolen", now=now())
    with pytest.raises(InputError, match="no active member"):
        renew(owner, "clinic-a", ADDRESSES, now=now())
    fresh = applicant_of(new_data_owner_home(tmp_path / "fresh"))
    for again in (applicant, fresh):
        with pytest.raises(InputError, match="the name clinic-a is taken"):
            approve(owner, again, ADDRESSES, max_examples=1, now=now())
    renamed = replace(applicant, organisation="clinic-b", verifying_key=generate_signing_key().public)
    with pytest.raises(InputError, match="clinic-b has a key that clinic-a has"):
        approve(owner, renamed, ADDRESSES, max_examples=1, now=now())
    assert not Registry(owner.registry).is_active("clinic-a", 8)
