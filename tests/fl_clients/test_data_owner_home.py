import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fl_clients.data_owner_home import DataOwnerHome, create_data_owner_home
from fl_clients.own_file_skeleton import skeleton
from fl_clients.policy import Policy, read_data_owner_file
from scaleot_core.bundle import load_identity, load_signing_key
from scaleot_core.errors import InputError, OutputError
from tests.support.enrolments import applicant_of, new_data_owner_home, now


def test_a_home_holds_the_keys_that_its_request_names(tmp_path: Path) -> None:
    home = new_data_owner_home(tmp_path / "clinic")
    applicant = applicant_of(home)
    assert applicant.organisation == "clinic-a"
    assert applicant.recipient == load_identity(home.identity_key).recipient
    assert applicant.verifying_key == load_signing_key(home.signing_key).public
    node = load_ssh_private_key(home.node_key.read_bytes(), None)
    assert load_ssh_public_key(applicant.node_public_key.encode()) == node.public_key()
    assert home.node_public_key.read_text() == f"{applicant.node_public_key}\n"


def test_nobody_else_may_read_a_private_key(tmp_path: Path) -> None:
    home = new_data_owner_home(tmp_path / "clinic")
    assert stat.S_IMODE(home.root.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.root.iterdir()}
    public = {"enrolment.json", "node.pub"}
    assert modes == {name: 0o644 if name in public else 0o600 for name in modes}
    assert set(modes) == public | {"identity.key", "signing.key", "node.key", "tls.key", "data-owner.toml"}


def test_a_home_is_made_whole_or_not_at_all_and_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected 1 to 64 letters"):
        create_data_owner_home(tmp_path / "clinic", "no name", own_file="", now=now())
    assert list(tmp_path.iterdir()) == []
    home = new_data_owner_home(tmp_path / "clinic")
    before = home.identity_key.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        new_data_owner_home(tmp_path / "clinic")
    assert DataOwnerHome(home.root).identity_key.read_bytes() == before


@pytest.mark.parametrize("name", ["notes.jsonl", 'my "notes" \\ ü\t.jsonl', "\U0001d52b.jsonl"])
def test_the_first_file_of_a_home_is_read_back_with_every_limit_at_its_default(tmp_path: Path, name: str) -> None:
    (tmp_path / "data-owner.toml").write_text(skeleton("clinic-a", tmp_path / name, records=100), encoding="utf-8")
    own = read_data_owner_file(tmp_path)
    assert (own.organisation, own.data) == ("clinic-a", tmp_path / name)
    assert own.policy == Policy()
    assert own.identity_key == tmp_path / "identity.key"
    assert own.owner_public_key == tmp_path / "owner.pub"
    assert own.privacy is not None and own.privacy.mechanisms == ["dp-sgd"], "private unless the data owner says not"


@pytest.mark.parametrize(
    ("records", "declared", "delta"),
    [(1, 1, 1e-5), (7, 8, 1e-5), (99, 128, 1e-5), (572, 512, 1e-5), (10_000, 8_192, 1e-5), (1_000_000, 1 << 20, 1e-8)],
)
def test_what_is_told_of_the_number_of_records_is_no_more_than_a_power_of_two(
    tmp_path: Path, records: int, declared: int, delta: float
) -> None:
    said = []
    for neighbour in (records, records + 1):
        (tmp_path / "data-owner.toml").write_text(skeleton("clinic-a", tmp_path / "x", records=neighbour))
        privacy = read_data_owner_file(tmp_path).privacy
        assert privacy is not None and privacy.delta <= 0.15 / neighbour
        said.append((privacy.declared_records, privacy.delta))  # noise and rate, which are told, follow from these
    assert said[0] == (declared, delta)
    assert said[0] == said[1] or records == 1
