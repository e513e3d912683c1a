"""The public text of a comparison: which of its points read it, and whether it is enough for them."""

from collections.abc import Sequence

from fl_server.comparison.points import Point
from fl_server.compress import needs_importance, public_blocks
from scaleot_core.compression.builders.crash import MIN_BLOCKS
from scaleot_core.compression.importance import check_blocks
from scaleot_core.errors import ModelError
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import Reporter
from scaleot_core.run_file import EmulatorSection, RunFile
from scaleot_core.shapes import TokenBlocks


def check_public_text(points: Sequence[Point], full: LanguageModel, reporter: Reporter) -> None:
    """Checks that the model can read the public text, and that there is enough of it, for every point that reads it.

    Raises:
        InputError: it cannot be read, or is too short.
    """
    blocks: dict[str, TokenBlocks] = {}
    for run in (point.run for point in points if reads_public_text(point.run)):
        text = run.importance.model_dump_json(include={"text", "block_tokens"})
        if text not in blocks:
            blocks[text] = public_blocks(full, run.importance, reporter)
        _check_enough(blocks[text], run.emulator)


def reads_public_text(run: RunFile) -> bool:
    """Tells whether the public text decides on the run's emulator or its adapter layers, or heals it in an attack."""
    section = run.emulator
    return (
        needs_importance(section)
        or section.adapter_rule == "gradient"
        or section.builder == "crash"
        or (section.builder == "gradot" and section.removed_rank_share > 0)
        or (section.builder == "distilled" and section.replaced_layer_share < 1)
        or bool(run.model_privacy.healing_steps)
    )


def _check_enough(blocks: TokenBlocks, section: EmulatorSection) -> None:
    if needs_importance(section):
        check_blocks(blocks)
    if section.builder == "crash" and len(blocks) < MIN_BLOCKS:
        raise ModelError(f"crash needs at least {MIN_BLOCKS} blocks of public text, got {len(blocks)}: give more text")
