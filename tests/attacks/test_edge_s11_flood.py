"""S11: anonymous floods before login. Flower's own server reads 600 MB of an anonymous request into memory.

And F11 at the same door: clients of a member that send at 1 kB/s. That the round closes without them is shown by
``tests/fl_server/test_round_life.py``. All of it: ``pytest -m slow tests/attacks/test_edge_s11_flood.py``.
"""

import contextlib
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fl_server.deployment import Deployment, read_deployment
from fl_server.superlink import SuperLink, wait_until_healthy, write_connection
from scaleot_core.supervision import child_environment, part_home
from tests.support.bad_network import Line, bad_network
from tests.support.deployments import Deployed, build_deployment

MIB = 1024 * 1024
FLOODS, FLOOD_BYTES = 10, 100 * MIB
PARTS = ("superlink", "edge")


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    return build_deployment(tmp_path_factory.mktemp("federation"))


@pytest.fixture(scope="module")
def server(deployed: Deployed) -> Iterator[Deployment]:
    """SuperLink and edge, each a process, with the first data owner's node let in."""
    deployment = read_deployment(deployed.owner_home)
    command = [str(Path(sys.executable).parent / "scaleot"), "serve", str(deployed.owner_home), "--part"]
    processes = [subprocess.Popen([*command, part], start_new_session=True) for part in PARTS]
    try:
        assert wait_until_healthy(deployment.superlink.port, deployment.tls.authority)
        wait_until_open(deployment.fleet.port)
        folder = part_home(deployment.state, "rounds")
        write_connection(folder, deployment.superlink.port, deployment.tls.authority)
        SuperLink(child_environment(folder), folder).register(deployed.data_owner_homes[0] / "node.pub")
        yield deployment
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_until_open(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError(f"nothing listens on {port}")


def resident_bytes(deployment: Deployment) -> int:
    """The memory of both processes, found by the ports they listen on."""
    ports = {deployment.fleet.port, deployment.superlink.port}
    return sum(
        process.memory_info().rss
        for process in psutil.process_iter()
        if any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port in ports
            for connection in connections_of(process)
        )
    )


def connections_of(process: psutil.Process) -> list[Any]:
    with contextlib.suppress(psutil.Error):
        return process.net_connections("tcp")
    return []


def post(deployment: Deployment, path: str, length: int, sent: int) -> int:
    """Sends a request's head and up to ``sent`` bytes of its body, and returns the status that came."""
    context = ssl.create_default_context(cafile=deployment.tls.authority)
    plain = socket.create_connection(("127.0.0.1", deployment.fleet.port), timeout=30)
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
        answer = bytearray()

        def listen() -> None:
            with contextlib.suppress(OSError):
                while piece := connection.recv(4096):
                    answer.extend(piece)

        reader = threading.Thread(target=listen)
        reader.start()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n"
        with contextlib.suppress(OSError):  # the server has closed: it refused and reads no more
            connection.sendall(head.encode())
            for _ in range(0, sent, MIB):
                connection.sendall(bytes(MIB))
        reader.join(30)
    return int(bytes(answer).split(b" ", 2)[1])


def node_client(deployment: Deployment, home: Path, *, port: int = 0) -> tuple[FleetHttpClient, bytes]:
    key = load_ssh_private_key((home / "node.key").read_bytes(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    client = FleetHttpClient.from_server_address(
        f"127.0.0.1:{port or deployment.fleet.port}",
        False,
        str(deployment.tls.authority),
        interceptors=[NodeAuthHttpInterceptor(key, key.public_key())],
    )
    return client, public_key_to_bytes(key.public_key())


@pytest.mark.slow
@pytest.mark.parametrize(("length", "expected"), [(FLOOD_BYTES, 413), (16 * MIB, 401)])
def test_s11_anonymous_floods_cost_no_memory_and_a_live_node_goes_on(
    deployed: Deployed, server: Deployment, length: int, expected: int
) -> None:
    client, public_key = node_client(server, deployed.data_owner_homes[0])
    with client:
        activated = client.ActivateNode(ActivateNodeRequest(public_key=public_key, heartbeat_interval=30.0))
        alive = SendNodeHeartbeatRequest(node=Node(node_id=activated.node_id), heartbeat_interval=30.0)
        assert client.SendNodeHeartbeat(alive).success
        before = resident_bytes(server)
        statuses: list[int] = []
        floods = [
            threading.Thread(target=lambda: statuses.append(post(server, "/v1/fleet/push-object", length, FLOOD_BYTES)))
            for _ in range(FLOODS)
        ]
        for flood in floods:
            flood.start()
        while any(flood.is_alive() for flood in floods):
            assert client.SendNodeHeartbeat(alive).success
            time.sleep(0.1)
        assert client.SendNodeHeartbeat(alive).success
        client.DeactivateNode(DeactivateNodeRequest(node_id=activated.node_id))
    assert statuses == [expected] * FLOODS
    assert resident_bytes(server) - before < 32 * MIB


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/control/start-run", "/v1/runtime/acquire-task", "/docs", "/health"])
def test_s11_the_network_reaches_none_of_flowers_other_apis(server: Deployment, path: str) -> None:
    assert post(server, path, 2, 0) == 404


@pytest.mark.slow
def test_s11_the_superlink_listens_on_loopback_alone(server: Deployment) -> None:
    listening = [
        connection.laddr.ip
        for process in psutil.process_iter()
        for connection in connections_of(process)
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == server.superlink.port
    ]
    assert set(listening) == {"127.0.0.1"}
    assert server.secret.stat().st_mode & 0o777 == 0o600


SLOW_CLIENTS, SLOW_SECONDS, LONGEST_ANSWER_SECONDS = 16, 20.0, 5.0


@pytest.mark.slow
def test_f11_clients_at_one_kilobyte_a_second_cost_no_memory_and_hold_up_nobody(
    deployed: Deployed, server: Deployment
) -> None:
    """They are members, so that the edge takes what they send; it streams it, and they hold a connection each."""
    line = Line(bytes_per_second=1_000.0)
    live, public_key = node_client(server, deployed.data_owner_homes[0])
    upload = PushObjectRequest(run_id=1, object_id="0" * 64, object_content=bytes(8 * MIB))
    with live, bad_network(server.fleet.port, line):
        activated = live.ActivateNode(ActivateNodeRequest(public_key=public_key, heartbeat_interval=30.0))
        alive = SendNodeHeartbeatRequest(node=Node(node_id=activated.node_id), heartbeat_interval=30.0)
        assert live.SendNodeHeartbeat(alive).success
        before = resident_bytes(server)
        slow = [node_client(server, deployed.data_owner_homes[1], port=line.port)[0] for _ in range(SLOW_CLIENTS)]
        uploads = [threading.Thread(target=cut_short, args=(one, upload)) for one in slow]
        for one in uploads:
            one.start()
        peak, longest, until = 0, 0.0, time.monotonic() + SLOW_SECONDS
        while time.monotonic() < until:
            asked = time.monotonic()
            assert live.SendNodeHeartbeat(alive).success
            longest = max(longest, time.monotonic() - asked)
            peak = max(peak, resident_bytes(server))
            time.sleep(0.2)
        assert len(line.connected_at) == SLOW_CLIENTS and all(one.is_alive() for one in uploads), "they are at it"
        live.DeactivateNode(DeactivateNodeRequest(node_id=activated.node_id))
    for one in uploads:
        one.join(60)
    assert peak - before < 32 * MIB
    assert longest < LONGEST_ANSWER_SECONDS


def cut_short(client: FleetHttpClient, upload: PushObjectRequest) -> None:
    """Sends until the line goes away."""
    with contextlib.suppress(Exception), client:
        client.PushObject(upload)
