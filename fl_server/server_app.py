"""The one ServerApp, for every engine and for deployment.

It finds the model owner's directory in its own context or environment: no path comes over the wire. Heavy imports
stand in the handler, so that Flower's tools load this module at once.
"""

import os
import time
from contextvars import ContextVar
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from scaleot_core.errors import InputError
from scaleot_core.progress import LogReporter, Reporter

OWNER_KEY = "owner"
OWNER_VARIABLE = "SCALEOT_OWNER"

reporting: ContextVar[Reporter | None] = ContextVar("reporting", default=None)
"""Where an engine in this process wants the progress; else it goes to the log."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the rounds."""
    from fl_server.exchange import Exchange
    from fl_server.rounds import conduct_rounds

    exchange = Exchange(grid, clock=time.monotonic, sleep=time.sleep)
    conduct_rounds(exchange, owner_directory(context), reporting.get() or LogReporter())


def owner_directory(context: Context) -> Path:
    """Returns the model owner's directory: of the node's own configuration, else of the environment.

    Raises:
        InputError: neither names one.
    """
    path = context.node_config.get(OWNER_KEY) or os.environ.get(OWNER_VARIABLE)
    if not path:
        raise InputError(f"the server does not know its working directory: set {OWNER_VARIABLE}")
    return Path(str(path))
