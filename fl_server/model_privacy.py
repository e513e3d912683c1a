"""What a run says about model privacy: the owner's record of what left, and attacks on its emulator."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from fl_server.compress import disclosure_basis, public_blocks
from fl_server.data import Data
from fl_server.sealed_versions import DISCLOSURE_DIRECTORY
from scaleot_core.compression.emulator import Emulator
from scaleot_core.errors import ModelError
from scaleot_core.evaluation import Metrics
from scaleot_core.model_privacy.disclosure import Revealed, disclosed_union, verbatim_share, what_would_be_new
from scaleot_core.model_privacy.disclosure_record import DisclosedEmulator, read_disclosure, record_disclosure
from scaleot_core.model_privacy.floors import measure_floors
from scaleot_core.model_privacy.healing import HealingPoint, HealingSettings, heal_emulator
from scaleot_core.model_privacy.parameter_counts import count_parameters
from scaleot_core.model_privacy.recovery import Yardstick
from scaleot_core.model_privacy.strong_emulator import PrivateTuning, StrongEmulator, tune_whole_emulator
from scaleot_core.models.loading import LanguageModel
from scaleot_core.models.memory import free_bytes
from scaleot_core.out_of_memory import is_out_of_memory
from scaleot_core.progress import Reporter
from scaleot_core.report import NotMeasured, ReportedAttacks, ReportedDisclosure, ReportedModelPrivacy
from scaleot_core.run_file import RunFile
from scaleot_core.seeds import derive_seed
from scaleot_core.training.local import LocalTraining
from scaleot_core.training.readable import readable_examples

_Found = TypeVar("_Found")

_TUNED_BYTES = 16
"""A parameter of a copy that is tuned: itself, its gradient and AdamW's two moments, in float32."""
_HEALED_BYTES = 12
"""Of the healed copy while another is tuned: it has no gradients then."""
_WEIGHTS_SHARE = 0.7
"""Of the free memory, what these may take: activations need some too, and a CPU's process is killed without a word."""


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


def without_attacks(run: RunFile) -> RunFile:
    """Returns the run file with its attacks switched off."""
    off = {"strong_emulator_steps": 0, "healing_steps": []}
    return run.model_copy(update={"model_privacy": run.model_privacy.model_copy(update=off)})


def measure_model_privacy(
    run: RunFile, target: Target, data: Data, reporter: Reporter, *, digest: str, record: Path | None
) -> ReportedModelPrivacy:
    """Measures the attacks on held-out records, and records the emulator in the ``record`` of disclosure.

    ``digest`` is that of the emulator's sealed bundle. An attack that memory does not suffice for is left out with a
    note, so that the run is not lost with it.

    Raises:
        InputError: the record cannot be read, or the text cannot be used.
        OutputError: the record cannot be written.
    """
    started = time.monotonic()
    attacks = attack_emulator(run, target, data, reporter, may_leave_out=True)
    left = DisclosedEmulator(
        digest, datetime.now(UTC).date(), Revealed(target.emulator.plan, disclosure_basis(run, reporter))
    )
    disclosure = _disclose(left, target.full, record)
    return ReportedModelPrivacy(attacks, disclosure, time.monotonic() - started)


def attack_emulator(
    run: RunFile, target: Target, data: Data, reporter: Reporter, *, may_leave_out: bool = False
) -> ReportedAttacks:
    """Measures, on held-out records, the floors and the attacks that the run file does not switch off.

    The attacks see the text of all data owners together, which is more than any one of them has. With ``may_leave_out``
    one that memory does not suffice for is noted and left out.

    Raises:
        InputError: the text cannot be used.
        ModelError: memory does not suffice for an attack, by its weights.
    """
    reporter.note("measuring model privacy")
    seed, section = _seed(run), run.model_privacy
    floors = measure_floors(target.full, data.test, seed=seed, reporter=reporter)
    yardstick = Yardstick(data.test, target.zero_shot, floors)
    tuning = _private_tuning(run, target, data)

    def affordable(attack: Callable[[], _Found], name: str, bytes_per_parameter: int) -> _Found | NotMeasured:
        shortage = _memory_shortage(target.emulator, bytes_per_parameter)
        if not shortage:
            try:
                return attack()
            except (RuntimeError, MemoryError) as error:
                if not (may_leave_out and is_out_of_memory(error)):
                    raise
                shortage = "memory ran out"
        elif not may_leave_out:
            raise ModelError(f"{name}: {shortage}: take a machine with more, or set compare.attacks = false")
        reporter.note(f"warning: {name} is not measured: {shortage}")
        return NotMeasured(shortage)

    healing: tuple[HealingPoint, ...] | NotMeasured | None = None
    if section.healing_steps:
        heal = partial(_heal, run, target, yardstick, tuning, reporter)
        healing = affordable(heal, "healing", _HEALED_BYTES + _TUNED_BYTES if tuning else _TUNED_BYTES)
    strong: StrongEmulator | NotMeasured | None = None
    if tuning:
        tune = partial(tune_whole_emulator, target.emulator, tuning, data.test, seed=seed, reporter=reporter)
        same = healing[0].tuned if isinstance(healing, tuple) and healing[0].steps == 0 else None
        strong = same or affordable(tune, "the strong emulator", _TUNED_BYTES)
    elif section.strong_emulator_steps:
        strong = NotMeasured("there is no private text at hand")
    return ReportedAttacks(floors, strong, healing)


def _memory_shortage(emulator: Emulator, bytes_per_parameter: int) -> str | None:
    needed = bytes_per_parameter * sum(parameter.numel() for parameter in emulator.model.parameters())
    free = free_bytes(emulator.model.device)
    if needed <= _WEIGHTS_SHARE * free:
        return None
    return (
        f"it needs {needed / 1e9:.3g} GB of memory for weights and some for activations, {free / 1e9:.3g} GB are free"
    )


def _seed(run: RunFile) -> int:
    return derive_seed(run.seed, "model privacy")


def _private_tuning(run: RunFile, target: Target, data: Data) -> PrivateTuning | None:
    section, federation = run.model_privacy, run.federation
    if not section.strong_emulator_steps or not data.pooled:
        return None
    examples = readable_examples(target.emulator, data.pooled, max_tokens=federation.max_tokens)
    training = LocalTraining(
        section.strong_emulator_steps,
        min(federation.batch_size, run.evaluation.full_fine_tuning_batch_size),
        section.strong_emulator_learning_rate,
        gradient_checkpointing=federation.gradient_checkpointing,
    )
    return PrivateTuning(examples, training)


def _heal(
    run: RunFile, target: Target, yardstick: Yardstick, private: PrivateTuning | None, reporter: Reporter
) -> tuple[HealingPoint, ...]:
    section = run.model_privacy
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
