"""``flwr-clientapp`` as ``scaleot join`` has it: the installed ClientApp, and no other code that a server may send.

The process that trains has the private text in memory, so it leaves no core dump and lets no other process of its user
look into it. It does reach the network: see ``scaleot_core.hardening``.
"""

import sys
from importlib import import_module

from flwr.supercore.utils import disable_process_dumping

from scaleot_core.flower_app import install_this_app_alone
from scaleot_core.hardening import harden_process


def main() -> None:
    """Runs Flower's command with its installer behind the check."""
    harden_process()
    disable_process_dumping(strict=False)
    install_this_app_alone(import_module("flwr.supernode.runtime.run_clientapp"))
    sys.argv[0] = "flwr-clientapp"
    import_module("flwr.supernode.cli.flwr_clientapp").flwr_clientapp()
