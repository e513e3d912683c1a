"""Whether a model can be compressed as run files ask: found out before any work, not after hours of it."""

from collections.abc import Sequence

from fl_server.compress import (
    asset_or_path,
    importance_settings,
    load_full_model,
    needs_importance,
    public_blocks,
    reads_text_for_control,
)
from scaleot_core.compression.builders import crash
from scaleot_core.compression.importance import check_blocks, check_settings
from scaleot_core.errors import ModelError, RunFileError
from scaleot_core.models.loading import LanguageModel, read_layout
from scaleot_core.progress import Reporter
from scaleot_core.run_file import EmulatorSection, RunFile
from scaleot_core.shapes import TokenBlocks


def load_feasible_model(run: RunFile, reporter: Reporter) -> LanguageModel:
    """Loads a run file's full model, and checks that it can be compressed as the run file asks.

    Raises:
        InputError: the model cannot be used, or not with this plan or this public text.
    """
    check_layers([run], read_layout(asset_or_path(run.model.source, reporter)).num_layers)
    full = load_full_model(run.model, reporter)
    check_public_text([run], full, reporter)
    return full


def check_layers(runs: Sequence[RunFile], num_layers: int) -> None:
    """Checks that a model of so many layers can be compressed as the run files ask.

    Raises:
        RunFileError: with every impossible choice at once.
    """
    counts = sorted({run.emulator.num_adapter_layers for run in runs})
    faults = [
        f"emulator.num_adapter_layers: got {count}, expected at most {num_layers}, the model's layers"
        for count in counts
        if count > num_layers
    ]
    if any(run.emulator.builder == "crash" and run.emulator.public_blocks < crash.MIN_BLOCKS for run in runs):
        faults.append(f"emulator.public_blocks: crash needs at least {crash.MIN_BLOCKS}")
    for settings in {importance_settings(run.importance) for run in runs if needs_importance(run.emulator)}:
        try:
            check_settings(settings, num_layers)
        except ModelError as error:
            faults.append(f"importance: {error}")
    if faults:
        raise RunFileError("the run file", tuple(faults))


def check_public_text(runs: Sequence[RunFile], full: LanguageModel, reporter: Reporter) -> None:
    """Checks that the model can read the public text, and that there is enough of it, for every run that reads it.

    Raises:
        InputError: it cannot be read, or is too short.
    """
    blocks: dict[str, TokenBlocks] = {}
    for run in filter(reads_public_text, runs):
        text = run.importance.model_dump_json(include={"text", "block_tokens"})
        if text not in blocks:
            blocks[text] = public_blocks(full, run.importance, reporter)
        _check_enough(blocks[text], run.emulator)


def reads_public_text(run: RunFile) -> bool:
    """Tells whether the public text decides on the run's emulator or its adapter layers, or heals it in an attack."""
    section = run.emulator
    return (
        needs_importance(section)
        or reads_text_for_control(section)
        or section.adapter_rule == "gradient"
        or section.builder == "crash"
        or (section.builder == "gradot" and section.removed_rank_share > 0)
        or (section.builder == "distilled" and section.replaced_layer_share < 1)
        or bool(run.model_privacy.healing_steps)
    )


def _check_enough(blocks: TokenBlocks, section: EmulatorSection) -> None:
    if needs_importance(section):
        check_blocks(blocks)
    if section.builder == "crash":
        crash.check_enough(blocks)
