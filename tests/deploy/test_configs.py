"""The configurations under deploy/ are read by ScaleOT's own schemas, fit units and containers, and have privacy on."""

import tomllib
from pathlib import Path
from typing import Any

import yaml

from fl_clients.policy import read_data_owner_file
from fl_server.deployment import OWNER_FILE
from scaleot_core.config import PATH_KEYS, read_run_file_elsewhere
from tests.support.container_policy import FULL_MODEL

DEPLOY = Path(__file__).parent.parent.parent / "deploy"


def test_the_model_owners_file_is_one_that_scaleot_reads_with_differential_privacy_on() -> None:
    run = read_run_file_elsewhere(DEPLOY / "configs" / OWNER_FILE)
    assert run.privacy.mechanism == "dp-sgd"
    assert run.privacy.epsilon <= 8.0
    assert run.federation.quorum <= run.federation.clients_per_round


def test_the_model_owners_paths_lie_where_the_vault_has_them_and_the_server_does_not() -> None:
    values = tomllib.loads((DEPLOY / "configs" / OWNER_FILE).read_text(encoding="utf-8"))
    paths = [values[section][key] for section, key in PATH_KEYS if key in values.get(section, {})]
    assert len(paths) == 3
    assert all(path.startswith(f"{FULL_MODEL}/") for path in paths)


def test_the_data_owners_file_is_one_that_scaleot_reads_and_lets_no_update_leave_without_differential_privacy() -> None:
    own = read_data_owner_file(DEPLOY / "configs")
    assert own.privacy is not None
    assert own.privacy.mechanisms == ["dp-sgd"]


def test_what_the_model_owner_asks_is_what_the_data_owner_allows() -> None:
    run, own = read_run_file_elsewhere(DEPLOY / "configs" / OWNER_FILE), read_data_owner_file(DEPLOY / "configs")
    asked, policy = run.federation, own.policy
    assert own.privacy is not None
    assert run.privacy.mechanism in own.privacy.mechanisms
    assert asked.local_steps <= policy.max_local_steps
    assert asked.batch_size <= policy.max_batch_size
    assert asked.max_tokens <= policy.max_tokens
    assert asked.learning_rate <= policy.max_learning_rate
    assert run.adapter.rank <= policy.max_adapter_rank
    assert own.privacy.epsilon >= run.privacy.epsilon


def test_the_data_is_where_containers_mount_it_to_read() -> None:
    data = read_data_owner_file(DEPLOY / "configs").data
    service = yaml.safe_load((DEPLOY / "compose/data-owner.yaml").read_text())["services"]["data-owner"]
    assert f"./data:{data.parent}:ro" in service["volumes"]
    (pod,) = [d for d in manifests("data-owner") if d["kind"] == "StatefulSet"]
    (container,) = pod["spec"]["template"]["spec"]["containers"]
    assert {"name": "data", "mountPath": str(data.parent), "readOnly": True} in container["volumeMounts"]


def test_the_ports_are_those_that_are_published_let_through_and_probed() -> None:
    serve = read_run_file_elsewhere(DEPLOY / "configs" / OWNER_FILE).serve
    ports = [int(address.rpartition(":")[2]) for address in (serve.fleet, serve.distribution)]
    assert all(address.startswith("0.0.0.0:") for address in (serve.fleet, serve.distribution)), "a container's own"
    service = yaml.safe_load((DEPLOY / "compose/model-owner.yaml").read_text())["services"]["server"]
    assert service["ports"] == [f"{port}:{port}" for port in ports]
    (pod,) = [d for d in manifests("model-owner") if d["kind"] == "StatefulSet"]
    (container,) = pod["spec"]["template"]["spec"]["containers"]
    assert [port["containerPort"] for port in container["ports"]] == ports
    dockerfile = (DEPLOY / "docker/Dockerfile").read_text(encoding="utf-8")
    assert f"EXPOSE {ports[0]} {ports[1]}\n" in dockerfile
    assert f"('127.0.0.1', {ports[1]})" in dockerfile
    node = read_data_owner_file(DEPLOY / "configs").node_port
    assert f"('127.0.0.1', {node})" in dockerfile
    assert f"('127.0.0.1', {node})" in (DEPLOY / "kubernetes/data-owner.yaml").read_text(encoding="utf-8")


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / f"kubernetes/{name}.yaml").read_text(encoding="utf-8")))
