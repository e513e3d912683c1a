"""Healing: whoever holds an emulator tunes all of it on public text first, to undo the compression."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from scaleot_core.compression.emulator import Emulator
from scaleot_core.errors import ModelError
from scaleot_core.evaluation import Metrics, evaluate
from scaleot_core.model_privacy.recovery import Recovery, Yardstick
from scaleot_core.model_privacy.strong_emulator import PrivateTuning, StrongEmulator, tune_whole_emulator
from scaleot_core.model_privacy.unfrozen import unfrozen_copy
from scaleot_core.progress import Reporter
from scaleot_core.shapes import TokenBlocks
from scaleot_core.training.data import EncodedExample
from scaleot_core.training.local import LocalTraining, Step, take_steps, watch_steps


@dataclass(frozen=True)
class HealingSettings:
    """One run of healing, and after how many of its steps it is measured."""

    budget_steps: tuple[int, ...]
    """At least one, ascending; 0 is the emulator as it was distributed, but for its float32 copy."""
    batch_size: int
    """Blocks of public text in a batch."""
    learning_rate: float
    """Of AdamW."""
    gradient_checkpointing: bool = False
    """Less memory for more time: see ``recomputed_activations``."""


@dataclass(frozen=True)
class HealingPoint:
    """What the attack reached with one budget; budgets are cumulative."""

    steps: int
    public_tokens: int
    """Tokens of public text that went through the emulator up to here; one read twice counts twice."""
    public_loss: float | None
    """Mean next-token cross-entropy of the steps since the point before; none without a step."""
    zero_shot: Metrics
    """Of the healed emulator, untuned, on the held-out records."""
    recovered: Recovery
    """Of ``zero_shot``, on the way from the floors to the full model's zero-shot."""
    tuned: StrongEmulator | None
    """The healed emulator tuned whole on the private data; none unless that was asked for."""


def heal_emulator(
    emulator: Emulator,
    public_blocks: TokenBlocks,
    settings: HealingSettings,
    yardstick: Yardstick,
    *,
    private: PrivateTuning | None,
    seed: int,
    reporter: Reporter,
) -> tuple[HealingPoint, ...]:
    """Tunes a copy of ``emulator`` on public text (next-token cross-entropy) and measures it at every budget.

    With ``private`` each point is also tuned whole on that text, from a copy of its own, as the strong emulator is:
    at budget 0 the two are the same. The emulator itself stays as it is.

    Raises:
        ModelError: there is no budget, one is negative, or they do not ascend.
        DataError: the text or the records cannot be used.
    """
    budgets = settings.budget_steps
    if not budgets or budgets[0] < 0 or any(after <= before for before, after in pairwise(budgets)):
        raise ModelError(f"healing budgets must be steps from 0 upwards, ascending; got {list(budgets)}")
    healed = unfrozen_copy(emulator)
    steps = _public_steps(healed, public_blocks, settings, seed)
    points: list[HealingPoint] = []
    for budget in budgets:
        taken_before, tokens_before = (points[-1].steps, points[-1].public_tokens) if points else (0, 0)
        count = budget - taken_before
        taken = watch_steps(steps, count, title="healing", reporter=reporter) if count else []
        healed.model.zero_grad(set_to_none=True)
        metrics = evaluate(healed.model, healed.tokenizer, yardstick.records, reporter=reporter)
        tuned = None
        if private:
            tuned = tune_whole_emulator(healed, private, yardstick.records, seed=seed, reporter=reporter)
        tokens = tokens_before + sum(step.num_examples for step in taken) * public_blocks.shape[1]
        loss = sum(step.loss for step in taken) / len(taken) if taken else None
        points.append(HealingPoint(budget, tokens, loss, metrics, yardstick.recovered(metrics), tuned))
    return tuple(points)


def _public_steps(healed: Emulator, blocks: TokenBlocks, settings: HealingSettings, seed: int) -> Iterator[Step]:
    """Returns the steps on blocks of text, every token but the first of a block a target."""
    return take_steps(
        healed.model,
        list(healed.model.parameters()),
        [EncodedExample(tuple(block), 1) for block in blocks.tolist()],
        LocalTraining(
            settings.budget_steps[-1],
            settings.batch_size,
            settings.learning_rate,
            gradient_checkpointing=settings.gradient_checkpointing,
        ),
        pad_token_id=healed.tokenizer.pad_token_id,
        seed=seed,
    )
