"""The default engine: server and clients in this process, one emulator in memory however many clients there are."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from fl_server.grid import InProcessGrid
from fl_server.owner import check_clients
from fl_server.server_app import OWNER_KEY, app, reporting
from scaleot_core.flower_app import CLIENT_APP
from scaleot_core.progress import Reporter

_RELEASE_EMULATORS = "fl_clients.client_app:release_emulators"
DATA_OWNER_KEY = "data-owner"


def run_in_process(owner_directory: Path, data_owner_directories: Sequence[Path], reporter: Reporter) -> None:
    """Runs the rounds of ``owner_directory`` with one client for every data owner's directory.

    Raises:
        InputError: the run's files are missing or faulty, or expect another number of clients.
        RoundFailedError: a round has no accepted update; what was reached before it is saved.
    """
    check_clients(owner_directory, len(data_owner_directories))
    client_app: ClientApp = _resolve(CLIENT_APP)
    grid = InProcessGrid(client_app, [{DATA_OWNER_KEY: str(path)} for path in data_owner_directories])
    context = Context(grid.run.run_id, 1, {OWNER_KEY: str(owner_directory)}, RecordDict(), {})
    token = reporting.set(reporter)
    try:
        app(grid, context)
    finally:
        reporting.reset(token)
        _resolve(_RELEASE_EMULATORS)()


def _resolve(reference: str) -> Any:
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)
