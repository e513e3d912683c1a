"""``flwr-serverapp`` as ``scaleot serve`` has it: the installed ServerApp, and no other code that a run may bring.

Whoever reaches the SuperLink's control port can submit a run with an app of its own, which Flower would run here.
"""

import sys
from importlib import import_module

from scaleot_core.flower_app import check_app
from scaleot_core.hardening import harden_process


def main() -> None:
    """Runs Flower's command with its installer behind the check."""
    harden_process()
    runtime = import_module("flwr.superlink.runtime.run_serverapp")
    install = runtime.install_from_fab

    def install_checked(bundle: bytes, **options: object) -> object:
        check_app(bundle)
        return install(bundle, **options)

    runtime.install_from_fab = install_checked  # type: ignore[attr-defined]  # Flower has no hook for it
    sys.argv[0] = "flwr-serverapp"
    import_module("flwr.superlink.cli.flwr_serverapp").flwr_serverapp()
