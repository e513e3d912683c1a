"""The strong emulator: a data owner tunes all of the emulator on the private data, not only the adapter.

The published figure of a tuned emulator is only a lower bound of what a data owner can get; this attack is nearer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from scaleot_core.compression.emulator import Emulator
from scaleot_core.evaluation import Metrics, evaluate
from scaleot_core.model_privacy.unfrozen import unfrozen_copy
from scaleot_core.progress import Reporter
from scaleot_core.training.data import EncodedExample, Record
from scaleot_core.training.local import LocalTraining, take_steps, watch_steps


@dataclass(frozen=True)
class PrivateTuning:
    """The text that the attacker holds, and how all of the emulator is tuned on it."""

    examples: Sequence[EncodedExample]
    training: LocalTraining


@dataclass(frozen=True)
class StrongEmulator:
    """What the attack reached."""

    metrics: Metrics
    """After the last step, on the held-out records."""
    losses: tuple[float, ...]
    """The mean target-token cross-entropy of every step's batch."""


def tune_whole_emulator(
    emulator: Emulator, private: PrivateTuning, records: Sequence[Record], *, seed: int, reporter: Reporter
) -> StrongEmulator:
    """Tunes every weight of a copy of ``emulator`` and measures the copy on held-out records.

    The batches, the loss and the optimizer are those of ``train_adapter``; ``unfrozen_copy`` says what memory holds.

    Raises:
        DataError: there is no example, or the records cannot be evaluated.
    """
    copied, training = unfrozen_copy(emulator), private.training
    pad_token_id: int = emulator.tokenizer.pad_token_id
    parameters = list(copied.model.parameters())
    steps = take_steps(copied.model, parameters, private.examples, training, pad_token_id=pad_token_id, seed=seed)
    taken = watch_steps(steps, training.steps, title="strong emulator", reporter=reporter)
    del steps, parameters  # gradients and moments: 12 bytes a parameter that the evaluation does not need
    copied.model.requires_grad_(False).zero_grad(set_to_none=True)
    metrics = evaluate(copied.model, copied.tokenizer, records, reporter=reporter)
    return StrongEmulator(metrics, tuple(step.loss for step in taken))
