"""Makes the golden records of an enrolment, once, when their formats are released.

    python -m tests.golden.make_enrolment tests/golden/enrolment-1

What was released is never made again; it must open for ever.
"""

import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from fl_server.audit_log import AuditLog
from fl_server.enrolment import renew, revoke
from fl_server.owner_home import OwnerHome
from scaleot_core.bundle import load_signing_key
from tests.support.enrolments import ADDRESSES, enrol, new_owner_home

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
RECORDS = ("organisations.jsonl", "organisations.head.json", "audit.jsonl", "audit.head.json", "owner.pub")


def make(destination: Path) -> None:
    """Writes both documents of an enrolment, and a registry and an audit log with a line of every kind."""
    with tempfile.TemporaryDirectory() as work:
        owner = new_owner_home(Path(work) / "owner", at=NOW)
        enrolled = enrol(owner, Path(work) / "clinic", at=NOW)
        enrol(owner, Path(work) / "bank", "bank", at=NOW)
        renew(owner, "bank", ADDRESSES, now=NOW)
        revoke(owner, "bank", from_round=3, reason="the contract ended", now=NOW)
        AuditLog(owner.audit_log).append("round.committed", {"round": 1, "digest": "ä"}, now=NOW)
        destination.mkdir()
        _copy(owner, destination)
        (destination / "clinic-a.admission.json").write_bytes(enrolled.admission)
        shutil.copy(enrolled.home.request, destination / "enrolment.json")
        shutil.copy(enrolled.home.identity_key, destination / "TEST-ONLY-identity.pem")


def _copy(owner: OwnerHome, destination: Path) -> None:
    for name in RECORDS:
        shutil.copy(owner.root / name, destination / name)
    head = AuditLog(owner.audit_log).signed_head(load_signing_key(owner.owner_key), now=NOW)
    (destination / "head.dsse.json").write_bytes(head)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
