"""The second engine: the same two apps under ``flwr run``, in Flower's simulation engine (Ray)."""

import importlib.util
import time
from pathlib import Path

from fl_server.owner import OwnerRunSettings, check_clients, read_rounds, read_settings
from fl_server.rounds import raise_if_failed
from fl_server.server_app import OWNER_VARIABLE
from fl_server.simulation_superlink import running_superlink
from fl_server.superlink import SuperLink
from scaleot_core.errors import EngineError, InputError
from scaleot_core.flower_app import APP, APP_FILE
from scaleot_core.progress import Reporter, Stage

DATA_OWNERS_VARIABLE = "SCALEOT_DATA_OWNERS"
POLL_SECONDS = 3.0
START_ALLOWANCE_SECONDS = 300.0
"""Ray and the apps take this long to start, at most."""
LOG_LINES = 40


def run_with_flower(owner_directory: Path, data_owners_directory: Path, reporter: Reporter) -> None:
    """Runs the rounds of ``owner_directory`` with a simulated node for every numbered directory (0, 1, ...).

    One Ray process serves all nodes, one after another: it has all cores and one emulator.

    Raises:
        InputError: Ray is not installed, or the run's files are missing or faulty.
        RoundFailedError: a round has no accepted update; what was reached before it is saved.
        EngineError: Flower failed; the message ends with its log.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError("engine 'flower' needs Ray: pip install 'scaleot[simulation]'")
    clients = sum(1 for path in data_owners_directory.glob("*") if path.name.isdecimal())
    check_clients(owner_directory, clients)
    variables = {
        OWNER_VARIABLE: str(owner_directory.absolute()),
        DATA_OWNERS_VARIABLE: str(data_owners_directory.absolute()),
        "OMP_NUM_THREADS": str(_threads()),  # Ray would set it to its own idea of an actor's share
    }
    with running_superlink(variables) as superlink:
        app = superlink.folder / "app"
        app.mkdir()
        (app / APP_FILE).write_text(APP, encoding="utf-8")
        run_id = superlink.submit(app, settings=_simulation_settings(clients))
        _follow(superlink, run_id, owner_directory, reporter)


def _follow(superlink: SuperLink, run_id: str, owner_directory: Path, reporter: Reporter) -> None:
    """Shows the rounds as their records appear, until the run is over."""
    settings = read_settings(owner_directory)
    deadline = time.monotonic() + _longest_seconds(settings)
    shown = 0
    with reporter.stage("rounds", steps=settings.rounds) as stage:
        while not (status := superlink.status(run_id)).startswith("finished"):
            if time.monotonic() > deadline:
                raise EngineError(f"Flower's run took longer than its deadlines allow\n{_log(superlink, run_id)}")
            shown = _show(owner_directory, shown, stage)
            time.sleep(POLL_SECONDS)
        _show(owner_directory, shown, stage)
    for record in read_rounds(owner_directory):
        raise_if_failed(record)
    if status != "finished:completed":
        raise EngineError(f"Flower's run ended as {status}; the end of its log:\n{_log(superlink, run_id)}")


def _show(owner_directory: Path, shown: int, stage: Stage) -> int:
    records = read_rounds(owner_directory)
    for record in records[shown:]:
        stage.advance(loss=record.train_loss)
    return len(records)


def _longest_seconds(settings: OwnerRunSettings) -> float:
    """Bounds a run that goes as it should: every round has two deadlines, one to introduce and one to train."""
    return START_ALLOWANCE_SECONDS + (2 * settings.rounds + 1) * settings.round_deadline_seconds


def _log(superlink: SuperLink, run_id: str) -> str:
    return "\n".join(superlink.log(run_id).strip().splitlines()[-LOG_LINES:])


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _simulation_settings(clients: int) -> str:
    """One actor with all there is: it holds one emulator, where each further one would hold its own."""
    import torch

    gpus = 1.0 if torch.cuda.is_available() else 0.0
    actor = f"init-args-num-cpus=1 client-resources-num-cpus=1 client-resources-num-gpus={gpus}"
    return f"num-supernodes={clients} {actor}"
