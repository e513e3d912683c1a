"""Starts what a model owner runs for a federation, and keeps it running: five parts, each a process of its own.

================  ====================================================================================================
``superlink``     Flower's SuperLink, on loopback, with TLS, node authentication and its state on disk
``distribution``  gives out sealed emulators (``fl_server.distribution``)
``edge``          the only way from the network to the SuperLink (``fl_server.edge``)
``server-app``    Flower's SuperExec, which starts the ServerApp when a run is submitted
``rounds``        lets approved nodes in, submits the run, and submits it again when it died (``fl_server.conductor``)
================  ====================================================================================================

``serve`` starts and supervises all; ``serve_part`` becomes one of them, for systemd and containers. The SuperLink reads
its certificate at its start alone, so ``serve`` starts it again when that was renewed; rounds outlive this.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from fl_server.deployment import RUN_FILE, Deployment, check_ports, read_deployment
from fl_server.server_app import OWNER_VARIABLE
from scaleot_core.bundle.key_files import make_secret
from scaleot_core.bundle.tls_files import TlsFiles, read_tls_files
from scaleot_core.errors import InputError
from scaleot_core.hardening import harden_process, write_guarded_command
from scaleot_core.progress import Reporter
from scaleot_core.supervision import (
    SupervisedProcess,
    become,
    child_environment,
    installed_program,
    part_home,
    sole_process,
    supervise,
)

SUPERLINK, PURPOSE = "superlink", "rounds"


def serve(home: Path, reporter: Reporter, *, is_new_run: bool) -> int:
    """Runs every part until the run's rounds are done or a signal comes, and returns the exit code.

    Goes on with the run of the home; ``is_new_run`` begins another, and so does a home that has none yet.

    Raises:
        InputError: the home cannot be served, a port is taken, or another process serves this home.
    """
    from fl_server.grants import grant_to_members
    from fl_server.new_run import begin_run, continue_run
    from fl_server.registry import Registry

    deployment = read_deployment(home)
    with sole_process(deployment.state / "lock"):
        check_ports(deployment.fleet, deployment.distribution, deployment.superlink)
        make_secret(deployment.secret)
        (begin_run if is_new_run else continue_run)(deployment.home, reporter)
        grant_to_members(deployment.home, Registry(deployment.registry))
        reporter.note(f"fleet {deployment.fleet}, distribution {deployment.distribution}")
        command = (installed_program("scaleot"), "serve", str(deployment.home), "--part")
        parts = [
            SupervisedProcess(
                name,
                (*command, name),
                child_environment(part_home(deployment.state, name)),
                name == PURPOSE,
                (lambda: usable_certificate(deployment.tls)) if name == SUPERLINK else (lambda: None),
            )
            for name in PARTS
        ]
        return supervise(parts, deployment.state, reporter)


def usable_certificate(tls: TlsFiles) -> bytes | None:
    """Returns a digest of the server's certificate and key, or none while they are half replaced or out of date."""
    try:
        credentials = read_tls_files(tls, now=datetime.now(UTC))
    except InputError:
        return None
    return hashlib.sha256(credentials.certificate + credentials.private_key).digest()


def serve_part(home: Path, part: str) -> None:
    """Becomes one part.

    Raises:
        InputError: as ``serve``; the part's own port alone is looked at.
    """
    deployment = read_deployment(home)
    make_secret(deployment.secret)
    harden_process()
    os.environ.update(child_environment(part_home(deployment.state, part)))
    with sole_process(part_home(deployment.state, part) / "lock"):
        PARTS[part](deployment)


def _superlink(deployment: Deployment) -> None:
    check_ports(deployment.superlink)
    tls, database = deployment.tls, deployment.state / "state.db"
    if not database.exists():
        (deployment.state / RUN_FILE).unlink(missing_ok=True)  # a SuperLink without its state knows no run
    become(
        "flower-superlink",
        *("--host", deployment.superlink.host, "--port", str(deployment.superlink.port)),
        *("--ssl-certfile", str(tls.certificate), "--ssl-keyfile", str(tls.private_key)),
        *("--ssl-ca-certfile", str(tls.authority)),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        *("--database", str(database)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(deployment.secret)),
    )


def _server_app(deployment: Deployment) -> None:
    commands = write_guarded_command(deployment.state / "bin", "flwr-serverapp", "fl_server.app_guard")
    os.environ.update({"PATH": str(commands), OWNER_VARIABLE: str(deployment.run)})
    become(
        "flower-superexec",
        *("--runtime-api-address", str(deployment.superlink), "--root-certificates", str(deployment.tls.authority)),
        *("--superexec-auth-secret-file", str(deployment.secret)),
    )


def _edge(deployment: Deployment) -> None:
    from fl_server.edge_server import run_edge

    check_ports(deployment.fleet)
    run_edge(deployment)


def _distribution(deployment: Deployment) -> None:
    from fl_server.distribution_server import run_distribution

    run_distribution(deployment)


def _rounds(deployment: Deployment) -> None:
    from fl_server.conductor import conduct
    from fl_server.new_run import begin_run
    from fl_server.owner import has_run
    from scaleot_core.progress import LogReporter

    reporter = LogReporter()
    if not has_run(deployment.run):
        begin_run(deployment.home, reporter)
    conduct(deployment, reporter)


PARTS: Mapping[str, Callable[[Deployment], None]] = MappingProxyType(
    {
        SUPERLINK: _superlink,
        "distribution": _distribution,
        "edge": _edge,
        "server-app": _server_app,
        PURPOSE: _rounds,
    }
)
