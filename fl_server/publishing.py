"""What ``scaleot publish`` does: a version of the emulator goes out, to the members of that moment, on the record."""

from dataclasses import dataclass
from datetime import datetime

from fl_server.audit_log import AuditLog
from fl_server.grants import issue_grants
from fl_server.owner_home import OwnerHome
from fl_server.pruning import prune
from fl_server.registry import Registry, Status
from fl_server.repository import publish, rotate
from fl_server.repository_state import Expiries
from fl_server.sealed_versions import read_sealed
from scaleot_core.bundle.repository import Role


@dataclass(frozen=True)
class Publication:
    """What went out, until when each role's metadata is accepted, and who has a grant for it."""

    version: int
    digest: str
    expiries: Expiries
    members: tuple[str, ...]


def publish_to_members(home: OwnerHome, version: int | None, *, now: datetime) -> Publication:
    """Publishes a sealed version, or the newest, grants it to every active member, and writes it to the audit log.

    Raises:
        InputError: there is no such version, a higher one is published, or a key is not in the home.
        VerificationError: the bundle is not whole.
        ChainError: the registry or the audit log cannot be believed; nothing is published then.
        OutputError: the home cannot be written; what was published before still is.
    """
    members, log = Registry(home.registry).members(), AuditLog(home.audit_log)
    sealed = read_sealed(home.root, version)
    expiries = publish(home.root, sealed, now=now)
    granted = issue_grants(home.root, {one.name: one.recipient for one in members if one.status is Status.ACTIVE})
    log.append(
        "publish.version",
        {"version": sealed.version, "digest": sealed.bundle.digest, "members": sorted(granted)},
        now=now,
    )
    return Publication(sealed.version, sealed.bundle.digest, expiries, tuple(sorted(granted)))


def prune_on_record(home: OwnerHome, keep: int, *, now: datetime) -> tuple[int, ...]:
    """Removes all but the newest published versions and writes it to the audit log; raises like ``prune``, and
    ``ChainError``.
    """
    log = AuditLog(home.audit_log)
    removed = prune(home.root, keep)
    if removed:
        log.append("publish.prune", {"versions": list(removed)}, now=now)
    return removed


def rotate_on_record(home: OwnerHome, role: Role, *, now: datetime) -> Expiries:
    """Replaces a role's keys and writes it to the audit log; raises like ``rotate``, and ``ChainError``."""
    log = AuditLog(home.audit_log)
    expiries = rotate(home.root, role, now=now)
    log.append("publish.rotate", {"role": role.value}, now=now)
    return expiries
