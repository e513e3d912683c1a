"""S30: the manifests are valid, every container is confined, and the network lets through what is needed alone."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support.container_policy import FULL_MODEL, WORKLOADS, faults_of_workload, mounts_of_workload

DIRECTORY = Path(__file__).parent.parent.parent / "deploy" / "kubernetes"
Document = dict[str, Any]


def documents() -> Iterator[tuple[str, Document]]:
    for path in sorted(DIRECTORY.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            yield f"{path.stem}/{document['kind']}/{document['metadata']['name']}", document


DOCUMENTS = dict(documents())
PODS = {name: document for name, document in DOCUMENTS.items() if document["kind"] in WORKLOADS}


def of_kind(kind: str, namespace: str) -> list[Document]:
    return [
        document
        for document in DOCUMENTS.values()
        if document["kind"] == kind and document["metadata"].get("namespace") == namespace
    ]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_s30_a_manifest_is_valid(name: str) -> None:
    kubernetes_validate.validate(copy.deepcopy(DOCUMENTS[name]), kubernetes_validate.latest_version(), strict=True)


def test_s30_the_validation_refuses_a_wrong_type() -> None:
    wrong = copy.deepcopy(DOCUMENTS["model-owner/StatefulSet/server"])
    wrong["spec"]["replicas"] = "one"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("name", PODS)
def test_s30_every_container_is_confined(name: str) -> None:
    assert list(faults_of_workload(PODS[name])) == []


@pytest.mark.parametrize(
    "loosen",
    [
        lambda pod, context: context.pop("runAsNonRoot"),
        lambda pod, context: context.update(runAsUser=0),
        lambda pod, context: context.pop("readOnlyRootFilesystem"),
        lambda pod, context: context.update(allowPrivilegeEscalation=True),
        lambda pod, context: context.pop("capabilities"),
        lambda pod, context: context.update(seccompProfile={"type": "Unconfined"}),
        lambda pod, context: pod.pop("automountServiceAccountToken"),
        lambda pod, context: pod.update(hostNetwork=True),
        lambda pod, context: pod["containers"][0].pop("resources"),
        lambda pod, context: pod["containers"][0].update(image="scaleot/model-owner:latest"),
        lambda pod, context: pod["containers"][0].update(env=[{"name": "OWNER_SECRET", "value": "x"}]),
        lambda pod, context: pod["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
    ],
)
def test_s30_the_policy_notices_each_way_to_loosen_it(loosen: Callable[[Document, Document], object]) -> None:
    document = copy.deepcopy(PODS["model-owner/StatefulSet/server"])
    pod = document["spec"]["template"]["spec"]
    loosen(pod, pod["containers"][0]["securityContext"])
    assert len(list(faults_of_workload(document))) == 1


def test_s30_t24_the_vault_alone_mounts_the_full_model_and_only_to_read_it() -> None:
    for name, document in PODS.items():
        pod = document["spec"]["template"]["spec"]
        claims = {
            v["name"] for v in pod["volumes"] if v.get("persistentVolumeClaim", {}).get("claimName") == "full-model"
        }
        assert bool(claims) == (name == "vault/Job/vault"), name
        if name.startswith("model-owner/"):
            assert FULL_MODEL not in mounts_of_workload(document)
    (vault,) = PODS["vault/Job/vault"]["spec"]["template"]["spec"]["containers"]
    (mount,) = [mount for mount in vault["volumeMounts"] if mount["name"] == "full-model"]
    assert mount == {"name": "full-model", "mountPath": FULL_MODEL, "readOnly": True}


@pytest.mark.parametrize("namespace", ["scaleot-model-owner", "scaleot-data-owner"])
def test_s30_the_network_is_closed_but_for_what_is_named(namespace: str) -> None:
    policies = {document["metadata"]["name"]: document["spec"] for document in of_kind("NetworkPolicy", namespace)}
    assert policies.pop("deny-all") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    ((_, opened),) = policies.items()
    ports = {
        direction: {port["port"] for rule in opened.get(direction, []) for port in rule["ports"]}
        for direction in ("ingress", "egress")
    }
    expected = {
        "scaleot-model-owner": {"ingress": {8443, 8444}, "egress": set()},
        "scaleot-data-owner": {"ingress": set(), "egress": {53, 8443, 8444}},
    }
    assert ports == expected[namespace]
    assert opened["policyTypes"] == [direction.title() for direction, found in ports.items() if found]


def test_s30_the_vault_has_no_network() -> None:
    label = PODS["vault/Job/vault"]["spec"]["template"]["metadata"]["labels"]
    for policy in of_kind("NetworkPolicy", "scaleot-model-owner"):
        chosen = policy["spec"]["podSelector"].get("matchLabels", {})
        assert not chosen or not chosen.items() <= label.items(), policy["metadata"]["name"]


@pytest.mark.parametrize("name", [name for name in PODS if "StatefulSet" in name])
def test_s30_there_is_one_of_each_server_with_probes_and_a_budget_for_disruptions(name: str) -> None:
    document = PODS[name]
    assert document["spec"]["replicas"] == 1
    (container,) = document["spec"]["template"]["spec"]["containers"]
    assert {"startupProbe", "livenessProbe"} <= set(container)
    (budget,) = of_kind("PodDisruptionBudget", document["metadata"]["namespace"])
    assert budget["spec"]["selector"] == document["spec"]["selector"]


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if "/Namespace/" in name])
def test_s30_a_namespace_enforces_the_restricted_pod_standard(name: str) -> None:
    assert DOCUMENTS[name]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("name", PODS)
def test_s30_every_claim_account_and_selector_that_a_pod_names_is_there(name: str) -> None:
    document = PODS[name]
    namespace, pod = document["metadata"]["namespace"], document["spec"]["template"]["spec"]
    claims = {claim["metadata"]["name"] for claim in of_kind("PersistentVolumeClaim", namespace)}
    named = {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
    assert named <= claims
    assert pod["serviceAccountName"] in {a["metadata"]["name"] for a in of_kind("ServiceAccount", namespace)}
    mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    if "selector" in document["spec"]:
        labels = document["spec"]["template"]["metadata"]["labels"]
        assert document["spec"]["selector"]["matchLabels"].items() <= labels.items()
