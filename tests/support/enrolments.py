"""A model owner's home and data owners' homes, made by the functions behind the verbs, and what passes between them."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fl_clients.acceptance import Federation, accept, read_own_admission
from fl_clients.data_owner_home import DataOwnerHome, create_data_owner_home
from fl_clients.own_file_skeleton import skeleton
from fl_server.enrolment import Addresses, approve
from fl_server.owner_home import OwnerHome, create_owner_home
from scaleot_core.enrolment.request import Applicant, read_request

HOST = "fed.example.org"
ADDRESSES = Addresses(distribution=f"{HOST}:9443", fleet="127.0.0.1:9092")
MAX_EXAMPLES = 5_000
RECORD = '{"text": "the clinic saw patient 17"}\n'


def now() -> datetime:
    """The real time to the second, since certificates and python-tuf ask no other."""
    return datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True)
class Enrolled:
    """A data owner's home and the admission that was made for it."""

    home: DataOwnerHome
    admission: bytes

    def accept(self, admission: bytes | None = None, *, at: datetime | None = None) -> Federation:
        return accept(self.home, read_own_admission(self.home, admission or self.admission), now=at or now())


def new_owner_home(root: Path, *, at: datetime | None = None) -> OwnerHome:
    create_owner_home(root, [HOST], now=at or now())
    return OwnerHome(root)


def new_data_owner_home(root: Path, organisation: str = "clinic-a", *, at: datetime | None = None) -> DataOwnerHome:
    data = root.parent / f"{root.name}.jsonl"
    data.write_text(RECORD * 3)
    create_data_owner_home(root, organisation, own_file=skeleton(organisation, data, records=3), now=at or now())
    return DataOwnerHome(root)


def applicant_of(home: DataOwnerHome) -> Applicant:
    return read_request(home.request.read_bytes())


def enrol(owner: OwnerHome, root: Path, organisation: str = "clinic-a", *, at: datetime | None = None) -> Enrolled:
    """Makes a data owner's home and has the model owner approve it; nothing is accepted yet."""
    home = new_data_owner_home(root, organisation, at=at)
    admission = approve(owner, applicant_of(home), ADDRESSES, max_examples=MAX_EXAMPLES, now=at or now())
    return Enrolled(home, admission)
