import json
import os
import shutil
import socket
from datetime import UTC, datetime, timedelta
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from fl_clients.checkup import check_home as check_data_owner
from fl_server.checkup import check_home as check_owner
from scaleot_core.address import Address, parse_address
from scaleot_core.cli import VERBS_GROUP, run
from scaleot_core.doctor import Finding, certificate_chain, examine
from scaleot_core.errors import InputError
from tests.support.certificates import Authority
from tests.support.deployments import Deployed
from tests.support.federations import rewrite_data_owner
from tests.support.running import scaleot, wait_for
from tests.support.verbs import scaleot as scaleot_verb

CHECKUPS = (check_owner, check_data_owner)


def findings(home: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(home, CHECKUPS)}


def faults(home: Path) -> dict[str, str]:
    return {name: finding.text for name, finding in findings(home).items() if finding.is_fault}


def test_a_sound_owners_home_has_no_fault(owner: Path) -> None:
    assert faults(owner) == {}
    assert {"versions", "disk", "gpu", "keys", "certificate", "clock", "services"} <= findings(owner).keys()


def test_a_data_owner_whose_server_is_away_is_told_so_and_nothing_else(data_owner: Path) -> None:
    found = faults(data_owner)
    assert found.keys() == {"fleet", "distribution", "clock"}
    assert "is it running" in found["fleet"]


@pytest.mark.parametrize("name", ["owner.key", "authority/server.key"])
def test_a_key_that_others_can_read_is_a_fault_with_its_cure(owner: Path, name: str) -> None:
    (owner / name).chmod(0o640)
    assert f"run chmod 600 {owner / name}" in faults(owner)["keys"]


def test_a_home_that_others_can_enter_is_a_fault_with_its_cure(owner: Path) -> None:
    owner.chmod(0o755)
    assert f"run chmod 700 {owner}" in faults(owner)["keys"]


def test_a_port_that_is_taken_is_a_fault(owner: Path, deployed: Deployed) -> None:
    host, _, port = deployed.run.serve.fleet.partition(":")
    with socket.socket() as taken:
        taken.bind((host, int(port)))
        taken.listen()
        assert "taken by another process" in faults(owner)["services"]


def test_a_clock_that_was_set_back_is_a_fault(owner: Path) -> None:

    later = (datetime.now(UTC) + timedelta(hours=1)).timestamp()
    os.utime(owner / "audit.jsonl", (later, later))
    assert "set it (NTP)" in faults(owner)["clock"]


def test_private_text_that_cannot_be_read_is_a_fault(data_owner: Path) -> None:
    rewrite_data_owner(data_owner, 'data = "', 'data = "/none')
    assert "/none" in faults(data_owner)["data"]


def test_a_budget_without_its_ledger_is_a_fault_with_its_cure(data_owner: Path) -> None:
    (data_owner / "data-owner.toml").open("a").write(
        '\n[privacy]\nepsilon = 2.0\ndelta = 1e-5\nmechanisms = ["dp-sgd"]\ndeclared_records = 10\n'
    )
    assert "make it once with `scaleot budget DIRECTORY --create`" in faults(data_owner)["ledger"]
    assert scaleot_verb("budget", data_owner, "--create") == 0
    assert "ledger" not in faults(data_owner)
    about = "at delta 1e-05 for one training record, neighbouring data sets by add/remove, no release"
    assert findings(data_owner)["ledger"].text == f"epsilon 2 of 2 left {about}"
    (data_owner / "ledger" / "ledger.jsonl").write_text("{}\n")
    assert "ledger" in faults(data_owner)


def test_a_certificate_of_another_authority_is_a_fault(data_owner: Path, tmp_path: Path) -> None:
    shutil.copy(Authority(tmp_path / "other").path, data_owner / "authority.pem")
    assert "was not issued by" in faults(data_owner)["certificate"]


def test_a_certificate_that_soon_ends_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expires in 0 days: have it renewed"):
        certificate_chain(Authority(tmp_path / "ours").issue("clinic"), datetime.now(UTC))


def test_what_is_no_home_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a model owner's home nor a data owner's"):
        examine(tmp_path, CHECKUPS)


def test_every_fault_is_one_line_and_the_exit_code_is_2(data_owner: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", str(data_owner)], entry_points(group=VERBS_GROUP)) == 2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(findings(data_owner))
    assert sum(line.startswith("FAULT") for line in lines) == 3


def test_the_machine_alone_can_be_asked_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"], entry_points(group=VERBS_GROUP)) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == ["versions", "disk", "gpu"]


@pytest.mark.slow
def test_a_server_that_runs_is_reached_and_its_clock_compared(owner: Path, deployed: Deployed) -> None:
    fleet = parse_address(deployed.run.serve.fleet)
    with scaleot("serve", owner, "--part", "edge"):
        wait_for(lambda: listens(fleet), 120, "the edge")
        found = findings(deployed.data_owner_homes[0])
    assert "answers with TLSv1.3" in found["fleet"].text
    assert "s from the server's" in found["clock"].text
    assert [name for name, finding in found.items() if finding.is_fault] == ["distribution"]


def listens(address: Address) -> bool:
    try:
        socket.create_connection((address.host, address.port), timeout=1).close()
    except OSError:
        return False
    return True
