"""What every container under deploy/ must and must not be: one judgement for compose files and for manifests."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

USER = 10001
FULL_MODEL = "/srv/scaleot"
"""Where the vault mounts the full model; on the data owner's side, ``data`` below it is the private text."""
SECRET_NAME = re.compile(r"secret|passw|passphrase|token|private|credential|api_?key", re.IGNORECASE)
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job", "Pod")

REQUIRED_OF_A_CONTAINER: Mapping[str, Any] = {
    "runAsUser": USER,
    "runAsNonRoot": True,
    "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
REQUIRED_OF_A_SERVICE: Mapping[str, Any] = {
    "user": f"{USER}:{USER}",
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "ulimits": {"core": 0},
}


def faults_of_workload(document: Mapping[str, Any]) -> Iterator[str]:
    """Yields what a manifest's pod lacks or has too much of."""
    pod = document["spec"] if document["kind"] == "Pod" else document["spec"]["template"]["spec"]
    if pod.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken: expected false"
    yield from (f"{name}: expected none" for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name))
    yield from (f"volume {v['name']}: expected no part of the host" for v in pod.get("volumes", []) if "hostPath" in v)
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        context = container.get("securityContext", {})
        yield from _differences(context, REQUIRED_OF_A_CONTAINER, f"{container['name']}.securityContext")
        if context.get("privileged"):
            yield f"{container['name']}: expected no privileged container"
        if "memory" not in container.get("resources", {}).get("limits", {}):
            yield f"{container['name']}: expected a memory limit"
        yield from _faults_of_image(container["image"])
        for variable in container.get("env", []):
            if SECRET_NAME.search(variable["name"]) or "valueFrom" in variable:
                yield f"{container['name']}: environment variable {variable['name']}: expected secrets in files"
        if container.get("envFrom"):
            yield f"{container['name']}: envFrom: expected secrets in files"


def faults_of_service(name: str, service: Mapping[str, Any]) -> Iterator[str]:
    """Yields what a compose service lacks or has too much of."""
    yield from _differences(service, REQUIRED_OF_A_SERVICE, name)
    yield from (f"{name}: expected {limit}" for limit in ("mem_limit", "pids_limit") if limit not in service)
    for refused in ("privileged", "cap_add", "devices", "pid", "ipc", "env_file", "environment"):
        if refused in service:
            yield f"{name}: {refused}: expected none"
    if service.get("network_mode", "none") != "none":
        yield f"{name}: network_mode: expected none, or networks"
    if not any(place.startswith("/tmp:") for place in service.get("tmpfs", [])):  # noqa: S108 - the container's own
        yield f"{name}: expected a tmpfs for /tmp"
    yield from (f"{name}: expected no socket of the engine" for v in service.get("volumes", []) if "docker.sock" in v)
    yield from _faults_of_image(service["image"])


def mounts_of_workload(document: Mapping[str, Any]) -> set[str]:
    """Returns the paths that a manifest's containers mount."""
    containers = document["spec"]["template"]["spec"]["containers"]
    return {mount["mountPath"] for container in containers for mount in container.get("volumeMounts", [])}


def _faults_of_image(image: str) -> Iterator[str]:
    if not re.search(r":\d|@sha256:[0-9a-f]{64}$", image):
        yield f"image {image}: expected a version or a digest"


def _differences(got: Mapping[str, Any], required: Mapping[str, Any], where: str) -> Iterator[str]:
    for key, expected in required.items():
        if got.get(key) != expected:
            yield f"{where}.{key}: expected {expected}, got {got.get(key)}"
