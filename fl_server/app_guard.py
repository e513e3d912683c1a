"""``flwr-serverapp`` as ``scaleot serve`` has it: the installed ServerApp, and no other code that a run may bring.

Whoever reaches the SuperLink's control port can submit a run with an app of its own, which Flower would run here.
"""

import sys
from importlib import import_module

from scaleot_core.flower_app import install_this_app_alone
from scaleot_core.hardening import harden_process


def main() -> None:
    """Runs Flower's command with its installer behind the check."""
    harden_process()
    install_this_app_alone(import_module("flwr.superlink.runtime.run_serverapp"))
    sys.argv[0] = "flwr-serverapp"
    import_module("flwr.superlink.cli.flwr_serverapp").flwr_serverapp()
