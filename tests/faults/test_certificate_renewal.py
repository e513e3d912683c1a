"""The server's certificate is renewed under a running federation: every service shows the new one, and rounds go on.

pytest -m slow tests/faults/test_certificate_renewal.py
"""

import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fl_server.authority import renew_server
from fl_server.deployment import Deployment, read_deployment
from tests.support.deployments import build_deployment
from tests.support.running import check_is_committed, is_in_round, running, wait_for

ROUNDS = 3
SECONDS = 600.0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_renewed_certificate_is_shown_by_superlink_and_edge_and_no_round_is_lost(tmp_path: Path) -> None:
    deployed = build_deployment(tmp_path, f"federation.rounds={ROUNDS}")
    deployment = read_deployment(deployed.owner_home)
    with running(deployed) as server:
        wait_for(lambda: is_in_round(deployed, 1), SECONDS, "round 1")
        before = shown(deployment)
        renewed = renew_server(deployed.owner_home / "authority", [], now=datetime.now(UTC))
        new = renewed.public_bytes(Encoding.PEM).decode()
        assert new not in before
        wait_for(lambda: shown(deployment) == [new, new], SECONDS, "the new certificate")
        assert server.wait(2 * SECONDS) == 0
    check_is_committed(deployed, ROUNDS)
    log = (deployed.owner_home / "superlink" / "logs" / "edge.log").read_text()
    assert "Traceback" not in log


def shown(deployment: Deployment) -> list[str]:
    """Returns the certificates that SuperLink and edge show now; none for one that is down at the moment."""
    return [_shown(address.host, address.port) for address in (deployment.superlink, deployment.fleet)]


def _shown(host: str, port: int) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout=10) as connection,
            context.wrap_socket(connection) as secured,
        ):
            der = secured.getpeercert(binary_form=True)
    except OSError:
        return ""
    return "" if der is None else x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode()
