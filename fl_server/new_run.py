"""The beginning of a run in the model owner's home: the one moment at which the owner's key is needed to serve."""

import secrets
from pathlib import Path

from fl_server.canary import write_canary
from fl_server.data import read_canary_records
from fl_server.deployment import OWNER_FILE
from fl_server.owner import INITIAL_ADAPTER_FILE, has_run, read_adapter, read_settings, write_run
from fl_server.owner_home import OwnerHome
from fl_server.run_settings import run_settings
from fl_server.sealed_versions import BUNDLE_DIRECTORY, DATA_KEY_FILE, read_sealed
from scaleot_core.bundle import load_signing_key
from scaleot_core.config import read_run_file_elsewhere
from scaleot_core.errors import InputError
from scaleot_core.progress import Reporter

RUN_DIRECTORY = "run"
PAST_RUNS_DIRECTORY = "past-runs"


def continue_run(home: Path, reporter: Reporter) -> None:
    """Checks the run that is there, or begins one if there is none.

    Raises:
        InputError: it is about another bundle than the newest sealed one, or there is no sealed bundle.
    """
    directory = home / RUN_DIRECTORY
    if not has_run(directory):
        begin_run(home, reporter)
        return
    settings, sealed = read_settings(directory), read_sealed(home)
    if settings.bundle_digest != sealed.record.digest:
        raise InputError(
            f"{directory} is about an older emulator than version {sealed.version}, the newest in {home}: begin a run "
            "with it by --new-run; the old run is kept"
        )


def begin_run(home: Path, reporter: Reporter) -> None:
    """Writes a run of the newest sealed emulator by the settings of ``owner.toml``; the one before is set aside.

    Raises:
        InputError: there is no sealed emulator.
        DataError, AssetError: the canary's records cannot be had.
        RunFileError: ``owner.toml`` has faults.
        OutputError: the home cannot be written.
    """
    owner_home = OwnerHome(home)
    run, sealed = read_run_file_elsewhere(home / OWNER_FILE), read_sealed(home)
    canary_records = read_canary_records(run.canary, reporter)
    directory = home / RUN_DIRECTORY
    if has_run(directory):
        past = home / PAST_RUNS_DIRECTORY
        past.mkdir(mode=0o700, exist_ok=True)
        directory.rename(past / read_settings(directory).run)
    directory.mkdir(mode=0o700, exist_ok=True)
    up = Path("..")  # a run's paths start at its directory, so that a home may be moved
    version = up / sealed.directory.relative_to(home)
    settings = run_settings(
        run,
        sealed.record.adapter,
        sealed.record.digest,
        name=f"run-{sealed.version}-{secrets.token_hex(8)}",
        registry=up / owner_home.registry.name,
        audit_log=up / owner_home.audit_log.name,
        canary=write_canary(
            canary_records,
            directory,
            tolerance=run.canary.tolerance,
            bundle=version / BUNDLE_DIRECTORY,
            data_key=version / DATA_KEY_FILE,
            owner_public_key=up / owner_home.owner_public_key.name,
        )
        if canary_records
        else None,
    )
    initial = read_adapter(sealed.directory / INITIAL_ADAPTER_FILE)
    write_run(directory, settings, initial, owner=load_signing_key(owner_home.owner_key))
    reporter.note(f"run {settings.run} begins, with emulator version {sealed.version}")
