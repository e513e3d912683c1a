"""From the rounds' adapters to the tuned model: what ``scaleot plug-in`` does, where the full model may be read.

It takes adapters from the run's directory and listens to nobody, so it can run where the server that data owners reach
has no access to: that one never reads the full model.
"""

from pathlib import Path

from fl_server.compress import load_full_model
from fl_server.data import read_own_data
from fl_server.model_privacy import Target, measure_model_privacy, record_of_home, without_attacks
from fl_server.owner import read_round_adapter, read_rounds, read_settings
from fl_server.owner_home import OwnerHome
from fl_server.registry import Registry
from fl_server.report import Findings, make_report
from fl_server.sealed_versions import (
    IMPORTANCE_DIRECTORY,
    RUN_FILE,
    SEALED_DIRECTORY,
    SealedVersion,
    open_as_owner,
    read_sealed,
)
from fl_server.stopwatch import Stopwatch
from fl_server.worth import Evaluator, measure_worth
from scaleot_core.adapters.plug_in import save_adapter
from scaleot_core.compression.emulator import read_emulator
from scaleot_core.compression.importance_store import find_importance
from scaleot_core.config import read_run_file
from scaleot_core.errors import InputError
from scaleot_core.progress import Reporter
from scaleot_core.report import Report, Results, write_report


def plug_in(home: Path, directory: Path, reporter: Reporter, *, attacks: bool = True) -> Report:
    """Plugs what the home's run has reached into the full model, measures it, and writes it to ``directory``.

    Writes ``report.json``, ``report.html`` and ``adapter/``, which PEFT loads. The emulator is attacked as the sealed
    run file says, or not at all.

    Raises:
        InputError: no round is done, or model, data or a file of the home cannot be used.
        VerificationError: the sealed emulator is not what was sealed.
    """
    owner_home, watch = OwnerHome(home), Stopwatch()
    settings, rounds = read_settings(home / "run"), read_rounds(home / "run")
    done = [record for record in rounds if record.failure is None]
    if not done:
        raise InputError(f"{home / 'run'} has no round that is done yet: let scaleot serve run first")
    sealed = _sealed_of(home, settings.bundle_digest)
    run = read_run_file(sealed.directory / RUN_FILE, [])
    if not attacks:
        run = without_attacks(run)
    with watch.stage("load"):
        data = read_own_data(run, reporter)
        full = load_full_model(run.model, reporter)
    watch.add("aggregate", sum(record.aggregate_seconds for record in rounds))
    watch.add("train", sum(record.seconds - record.aggregate_seconds for record in rounds))
    measure = Evaluator(run.model, data, watch, reporter)
    zero_shot = measure("zero-shot", full)
    own = sealed.bundle
    with watch.stage("open"), open_as_owner(own.path, own.data_key, owner_home.owner_public_key) as opened:
        emulator = read_emulator(opened.files, device=full.model.device)
    adapters = [read_round_adapter(home / "run", record) for record in done]
    worth = measure_worth(full, emulator, settings.adapter, adapters, measure)
    save_adapter(full.model, full.layout, settings.adapter, worth.adapter, directory / "adapter")
    report = make_report(
        Findings(
            run,
            full,
            Results(zero_shot, worth.emulator_zero_shot, worth.emulator_tuned, worth.plug_in, None),
            rounds,
            sealed.record.plan,
            find_importance(IMPORTANCE_DIRECTORY, [sealed.directory]),
            sealed.record.emulator,
            sealed.bundle,
            measure_model_privacy(
                run,
                Target(full, emulator, zero_shot),
                data,
                reporter,
                digest=sealed.record.digest,
                record=record_of_home(run, home),
            ),
            tuple(member.name for member in Registry(owner_home.registry).members()),
        ),
        watch.read(),
    )
    write_report(report, directory)
    return report


def _sealed_of(home: Path, digest: str) -> SealedVersion:
    """Returns the version that a run is about; a newer one may have been sealed since."""
    for number in range(read_sealed(home).version, 0, -1):
        if (home / SEALED_DIRECTORY / str(number)).is_dir():
            sealed = read_sealed(home, number)
            if sealed.record.digest == digest:
                return sealed
    raise InputError(f"{home / 'run'} is about bundle {digest}, which is not in {home / SEALED_DIRECTORY} any more")
