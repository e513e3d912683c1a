"""Starts what a data owner runs to take part in a federation, and keeps it running: three parts, each a process.

===========  ========================================================================================================
``agent``    fetches the sealed emulator and each new version of it, and tells the server the step that training is at
``node``     Flower's SuperNode: the one connection to the model owner's server, outgoing
``trainer``  Flower's SuperExec, which starts a ClientApp for every message: the only part that opens the private text
===========  ========================================================================================================

``join`` starts and supervises all; ``join_part`` becomes one of them, for systemd and containers.

A SuperNode that was killed is refused by the server until its heartbeat expires, a minute later, and ends each time it
is: it is started again until it is let in.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from fl_clients.agent import fetch_first, keep_fetching
from fl_clients.membership import Membership, read_membership
from scaleot_core.bundle.key_files import make_secret
from scaleot_core.hardening import harden_process, write_guarded_command
from scaleot_core.progress import LogReporter, Reporter
from scaleot_core.supervision import (
    SupervisedProcess,
    become,
    child_environment,
    installed_program,
    part_home,
    sole_process,
    supervise,
)


def join(home: Path, reporter: Reporter) -> int:
    """Fetches the emulator, then runs every part until a signal comes, and returns the exit code.

    Raises:
        InputError: the home cannot take part, or another process takes part with it.
        VerificationError: what the server gives out is not what the owner signed.
    """
    membership = read_membership(home)
    with sole_process(membership.state / "lock"):
        make_secret(membership.secret)
        fetch_first(membership, reporter)
        reporter.note(f"{membership.own.organisation} takes part at {membership.fleet}")
        command = (installed_program("scaleot"), "join", str(membership.home), "--part")
        parts = [
            SupervisedProcess(name, (*command, name), child_environment(part_home(membership.state, name)))
            for name in PARTS
        ]
        return supervise(parts, membership.state, reporter)


def join_part(home: Path, part: str) -> None:
    """Becomes one part.

    Raises:
        InputError: as ``join``.
    """
    membership = read_membership(home)
    make_secret(membership.secret)
    harden_process()
    os.environ.update(child_environment(part_home(membership.state, part)))
    with sole_process(part_home(membership.state, part) / "lock"):
        PARTS[part](membership)


def _agent(membership: Membership) -> None:
    keep_fetching(membership, LogReporter())


def _node(membership: Membership) -> None:
    become(
        "flower-supernode",
        *("--superlink", str(membership.fleet), "--root-certificates", str(membership.tls.authority)),
        *("--auth-supernode-private-key", str(membership.node_key)),
        *("--host", membership.runtime.host, "--port", str(membership.runtime.port)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(membership.secret)),
        *("--node-config", f'data-owner="{membership.home}"'),  # a path: what stands here, everybody's ps shows
    )


def _trainer(membership: Membership) -> None:
    os.environ["PATH"] = str(write_guarded_command(membership.state / "bin", "flwr-clientapp", "fl_clients.app_guard"))
    become(
        "flower-superexec",
        *("--runtime-api-address", str(membership.runtime), "--insecure"),  # on loopback, with the secret
        *("--superexec-auth-secret-file", str(membership.secret)),
    )


PARTS: Mapping[str, Callable[[Membership], None]] = MappingProxyType(
    {"agent": _agent, "node": _node, "trainer": _trainer}
)
