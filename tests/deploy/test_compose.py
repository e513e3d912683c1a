"""S30: every compose service is confined, and the model owner's server never sees the full model."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.container_policy import FULL_MODEL, faults_of_service

DIRECTORY = Path(__file__).parent.parent.parent / "deploy" / "compose"
FILES = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(DIRECTORY.glob("*.yaml"))}
SERVICES = {f"{file}/{name}": service for file, text in FILES.items() for name, service in text["services"].items()}


@pytest.mark.parametrize("name", SERVICES)
def test_s30_every_service_is_confined(name: str) -> None:
    assert list(faults_of_service(name, SERVICES[name])) == []


@pytest.mark.parametrize(
    "loosen",
    [
        lambda service: service.pop("user"),
        lambda service: service.pop("read_only"),
        lambda service: service.pop("cap_drop"),
        lambda service: service.update(security_opt=["seccomp:unconfined"]),
        lambda service: service.pop("mem_limit"),
        lambda service: service.pop("pids_limit"),
        lambda service: service.pop("ulimits"),
        lambda service: service.pop("tmpfs"),
        lambda service: service.update(privileged=True),
        lambda service: service.update(environment={"OWNER_KEY": "x"}),
        lambda service: service.update(network_mode="host"),
        lambda service: service["volumes"].append("/var/run/docker.sock:/var/run/docker.sock"),
        lambda service: service.update(image="scaleot/model-owner:latest"),
    ],
)
def test_s30_the_policy_notices_each_way_to_loosen_it(loosen: Callable[[dict[str, Any]], object]) -> None:
    service = copy.deepcopy(SERVICES["model-owner/server"])
    loosen(service)
    assert len(list(faults_of_service("server", service))) == 1


def test_s30_t24_the_vault_alone_mounts_the_full_model_to_read_it_and_has_no_network() -> None:
    for name, service in SERVICES.items():
        inside = {volume.split(":")[1]: volume.split(":")[2:] for volume in service["volumes"]}
        if name == "model-owner/vault":
            assert inside[FULL_MODEL] == ["ro"]
            assert service["network_mode"] == "none"
            assert service["profiles"] == ["vault"], "it starts by hand alone"
        elif name.startswith("model-owner/"):
            assert FULL_MODEL not in inside, name


def test_s30_a_data_owner_listens_to_nobody_and_its_text_is_only_read() -> None:
    (service,) = FILES["data-owner"]["services"].values()
    assert "ports" not in service
    assert "./data:/srv/scaleot/data:ro" in service["volumes"]


@pytest.mark.parametrize("name", SERVICES)
def test_s30_every_network_that_a_service_joins_is_there(name: str) -> None:
    assert set(SERVICES[name].get("networks", [])) <= set(FILES[name.split("/", maxsplit=1)[0]]["networks"])
