"""What a run says about model privacy: the owner's record of what left, and the attacks that the run file asks for."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fl_server.compress import disclosure_basis, public_blocks
from fl_server.data import Data
from fl_server.sealed_versions import DISCLOSURE_DIRECTORY
from scaleot_core.compression.emulator import Emulator
from scaleot_core.evaluation import Metrics
from scaleot_core.model_privacy.disclosure import Revealed, disclosed_union, verbatim_share, what_would_be_new
from scaleot_core.model_privacy.disclosure_record import DisclosedEmulator, read_disclosure, record_disclosure
from scaleot_core.model_privacy.floors import measure_floors
from scaleot_core.model_privacy.healing import HealingPoint, HealingSettings, heal_emulator
from scaleot_core.model_privacy.parameter_counts import count_parameters
from scaleot_core.model_privacy.recovery import Yardstick
from scaleot_core.model_privacy.strong_emulator import PrivateTuning, StrongEmulator, tune_whole_emulator
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import Reporter
from scaleot_core.report import ReportedAttacks, ReportedDisclosure, ReportedModelPrivacy
from scaleot_core.run_file import RunFile
from scaleot_core.seeds import derive_seed
from scaleot_core.training.local import LocalTraining
from scaleot_core.training.readable import readable_examples


@dataclass(frozen=True)
class Target:
    """An emulator under attack, and the full model that it stands for."""

    full: LanguageModel
    emulator: Emulator
    zero_shot: Metrics
    """The full model's, on the held-out records."""


def disclosure_record(run: RunFile) -> Path | None:
    """Returns the directory in which a run file's emulators add up, if it names one."""
    directory = run.model_privacy.disclosure_record
    return Path(directory) if directory else None


def record_of_home(run: RunFile, home: Path) -> Path:
    """Returns the directory in which the emulators of a model owner's home add up: its own, unless another is named."""
    return disclosure_record(run) or home / DISCLOSURE_DIRECTORY


def warn_of_disclosure(record: Path | None, full: LanguageModel, revealed: Revealed, reporter: Reporter) -> None:
    """Says, before an emulator leaves, of which layers it would reveal more than those in the record did.

    Raises:
        InputError: the record cannot be read.
    """
    before = read_disclosure(record, full.digest).revealed if record else ()
    indices = [str(one.after.index) for one in what_would_be_new(before, revealed)] if before else []
    if indices:
        reporter.note(f"warning: more of layers {', '.join(indices)} leaves than with the emulators before this one")


def measure_model_privacy(
    run: RunFile, target: Target, data: Data, reporter: Reporter, *, digest: str, record: Path | None
) -> ReportedModelPrivacy:
    """Measures the attacks on held-out records, and records the emulator in the ``record`` of disclosure.

    ``digest`` is that of the emulator's sealed bundle.

    Raises:
        InputError: the record cannot be read, or the text cannot be used.
        OutputError: the record cannot be written.
    """
    started = time.monotonic()
    attacks = attack_emulator(run, target, data, reporter)
    left = DisclosedEmulator(
        digest, datetime.now(UTC).date(), Revealed(target.emulator.plan, disclosure_basis(run, reporter))
    )
    disclosure = _disclose(left, target.full, record)
    return ReportedModelPrivacy(attacks, disclosure, time.monotonic() - started)


def attack_emulator(run: RunFile, target: Target, data: Data, reporter: Reporter) -> ReportedAttacks:
    """Measures, on held-out records, the floors and the attacks that the run file asks for.

    The attacks see the text of all data owners together, which is more than any one of them has.

    Raises:
        InputError: the text cannot be used.
    """
    reporter.note("measuring model privacy")
    seed = _seed(run)
    floors = measure_floors(target.full, data.test, seed=seed, reporter=reporter)
    yardstick = Yardstick(data.test, target.zero_shot, floors)
    tuning = _private_tuning(run, target, data)
    healing = _heal(run, target, yardstick, tuning, reporter)
    strong: StrongEmulator | None = None
    if healing and healing[0].steps == 0:
        strong = healing[0].tuned  # the same attack on the same copy
    elif tuning:
        strong = tune_whole_emulator(target.emulator, tuning, data.test, seed=seed, reporter=reporter)
    return ReportedAttacks(floors, strong, healing)


def _seed(run: RunFile) -> int:
    return derive_seed(run.seed, "model privacy")


def _private_tuning(run: RunFile, target: Target, data: Data) -> PrivateTuning | None:
    section, federation = run.model_privacy, run.federation
    if not section.strong_emulator_steps:
        return None
    examples = readable_examples(target.emulator, data.pooled, max_tokens=federation.max_tokens)
    training = LocalTraining(
        section.strong_emulator_steps,
        federation.batch_size,
        section.strong_emulator_learning_rate,
        gradient_checkpointing=federation.gradient_checkpointing,
    )
    return PrivateTuning(examples, training)


def _heal(
    run: RunFile, target: Target, yardstick: Yardstick, private: PrivateTuning | None, reporter: Reporter
) -> tuple[HealingPoint, ...] | None:
    section = run.model_privacy
    if not section.healing_steps:
        return None
    settings = HealingSettings(
        tuple(section.healing_steps),
        run.importance.batch_size,
        section.healing_learning_rate,
        run.importance.gradient_checkpointing,
    )
    blocks = public_blocks(target.full, run.importance, reporter)
    return heal_emulator(
        target.emulator, blocks, settings, yardstick, private=private, seed=_seed(run), reporter=reporter
    )


def _disclose(left: DisclosedEmulator, full: LanguageModel, record: Path | None) -> ReportedDisclosure:
    out: tuple[Revealed, ...] = (left.revealed,)
    before: tuple[Revealed, ...] = ()
    if record:
        recorded = record_disclosure(record, full.digest, left)
        out = recorded.revealed
        before = tuple(one.revealed for one in recorded.emulators if one.digest != left.digest)
    union = disclosed_union(out, len(left.revealed.plan.layers))
    share = verbatim_share(union, count_parameters(full))
    new = what_would_be_new(before, left.revealed) if before else ()
    return ReportedDisclosure(record is not None, len(out), share, union, new)
