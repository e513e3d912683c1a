import shutil
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fl_server.authority import renew_server
from fl_server.canary import emulator_canary
from fl_server.deployment import check_ports, read_deployment
from fl_server.new_run import begin_run, continue_run
from fl_server.node_keys import ApprovedNodes, approved_nodes
from fl_server.owner import INITIAL_ADAPTER_FILE, read_adapter, read_settings
from fl_server.registry import Registry
from fl_server.serve import PARTS, PURPOSE, usable_certificate
from fl_server.serve_commands import PartName
from scaleot_core.errors import DataError, InputError, RunFileError
from scaleot_core.progress import SilentReporter
from tests.support.certificates import Authority
from tests.support.deployments import Deployed


@pytest.fixture
def home(deployed: Deployed, tmp_path: Path) -> Path:
    return shutil.copytree(deployed.owner_home, tmp_path / "owner")


def set_canary(home: Path, **keys: Any) -> None:
    document = tomllib.loads((home / "owner.toml").read_text())
    (home / "owner.toml").write_text(tomli_w.dumps({**document, "canary": keys}))


def test_a_home_is_read_with_its_three_addresses(home: Path, deployed: Deployed) -> None:
    deployment = read_deployment(home)
    assert str(deployment.fleet) == deployed.run.serve.fleet
    assert str(deployment.distribution) == deployed.run.serve.distribution
    assert deployment.superlink.is_loopback
    check_ports(deployment.fleet, deployment.distribution, deployment.superlink)


def test_addresses_that_share_a_port_are_refused(home: Path, deployed: Deployed) -> None:
    text = (home / "owner.toml").read_text().replace(deployed.run.serve.distribution, deployed.run.serve.fleet)
    (home / "owner.toml").write_text(text)
    with pytest.raises(InputError, match="three different ports"):
        read_deployment(home)


@pytest.mark.parametrize("fault", ['fleet = "nowhere"', "superlink_port = 0", 'unknown = "x"'])
def test_faults_of_the_settings_are_listed(home: Path, fault: str) -> None:
    text = (home / "owner.toml").read_text()
    start = text.index("[serve]")
    (home / "owner.toml").write_text(f"{text[:start]}[serve]\n{fault}\n")
    with pytest.raises(RunFileError, match="serve"):
        read_deployment(home)


def test_the_parts_of_the_command_line_are_those_that_are_supervised() -> None:
    assert set(PartName.__args__) == set(PARTS)  # type: ignore[attr-defined]
    assert PURPOSE in PARTS


def test_a_renewed_certificate_is_another_one_and_a_half_replaced_one_is_none(home: Path, tmp_path: Path) -> None:
    tls = read_deployment(home).tls
    first = usable_certificate(tls)
    assert first == usable_certificate(tls)
    renew_server(home / "authority", [], now=datetime.now(UTC))
    second = usable_certificate(tls)
    assert None not in (first, second) and first != second
    kept = tls.certificate.read_bytes()
    tls.certificate.write_bytes(Authority(tmp_path / "other").issue("localhost").certificate.read_bytes())
    assert usable_certificate(tls) is None, "it is not the key's"
    tls.certificate.write_bytes(kept)
    assert usable_certificate(tls) == second


def test_a_run_begins_once_and_is_gone_on_with(home: Path) -> None:
    continue_run(home, SilentReporter())
    first = read_settings(home / "run").run
    continue_run(home, SilentReporter())
    assert read_settings(home / "run").run == first


def test_a_new_run_sets_the_old_one_aside(home: Path) -> None:
    begin_run(home, SilentReporter())
    first = read_settings(home / "run").run
    begin_run(home, SilentReporter())
    assert read_settings(home / "run").run != first
    assert read_settings(home / "past-runs" / first).run == first


def test_a_runs_canary_is_the_text_of_the_owners_file_in_the_sealed_emulator(home: Path, tmp_path: Path) -> None:
    (tmp_path / "public.jsonl").write_text('{"text": "the film is good"}\n')
    set_canary(home, text=str(tmp_path / "public.jsonl"), tolerance=0.5)
    begin_run(home, SilentReporter())
    (tmp_path / "public.jsonl").unlink()  # the run has a copy
    shutil.move(home, tmp_path / "moved")
    run = tmp_path / "moved/run"
    settings = read_settings(run)
    assert settings.canary is not None
    with emulator_canary(settings.canary, settings.adapter, run) as canary:
        loss = canary.measure(read_adapter(run / INITIAL_ADAPTER_FILE))
    assert loss > 0 and canary.fault(1.4 * loss, loss) is None and canary.fault(1.6 * loss, loss) is not None


def test_without_the_canarys_text_no_run_begins_and_the_old_one_stays(home: Path, tmp_path: Path) -> None:
    begin_run(home, SilentReporter())
    first = read_settings(home / "run").run
    set_canary(home, text="nowhere.jsonl")
    with pytest.raises(DataError, match="nowhere"):
        begin_run(home, SilentReporter())
    assert read_settings(home / "run").run == first


def test_a_run_of_an_older_emulator_is_not_gone_on_with_unasked(home: Path) -> None:
    begin_run(home, SilentReporter())
    settings = read_settings(home / "run")
    older = settings.model_copy(update={"bundle_digest": "0" * 64})
    (home / "run/federation.json").write_text(older.model_dump_json())
    with pytest.raises(InputError, match="--new-run"):
        continue_run(home, SilentReporter())


def test_the_edge_knows_every_approved_node(home: Path, deployed: Deployed) -> None:
    names = {own.name for own in deployed.data_owner_homes}
    assert set(approved_nodes(Registry(home / "organisations.jsonl"))) == names
    assert set(ApprovedNodes(home / "organisations.jsonl")().values()) == names
