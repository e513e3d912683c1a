"""Every layer of the full model by its importance and by the controls: do they agree, and what did each cost?"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from fl_server.compress import Workbench, load_full_model
from scaleot_core.compression.controls import activation_changes, leave_one_out, random_scores
from scaleot_core.compression.importance import ImportanceSettings
from scaleot_core.compression.rank_correlation import ranks, spearman
from scaleot_core.progress import Reporter
from scaleot_core.run_file import RunFile

Result = TypeVar("Result")


@dataclass(frozen=True)
class Cost:
    """What it took to compute the scores of one measure, or of several in one pass."""

    measures: tuple[str, ...]
    seconds: float | None
    """Wall seconds, of importance those of the estimate when and where it was made; ``None`` if nobody measured."""
    tokens: int
    """Tokens that the model read, again in every pass; in training they also go backward, which is not counted."""


@dataclass(frozen=True)
class LayerReport:
    """The scores of all layers by every measure; a high score means important."""

    model: str
    public_text: str
    num_blocks: int
    """Blocks of public text that the controls read."""
    block_tokens: int
    scores: dict[str, tuple[float, ...]]
    """By measure, ``importance`` first; one score for each layer."""
    costs: tuple[Cost, ...]

    def correlation(self, first: str, second: str) -> float | None:
        """Returns Spearman's rank correlation of two measures; ``None`` where one gives all layers the same score."""
        return spearman(self.scores[first], self.scores[second])

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain JSON values, with ranks (1 is the most important) and rank correlations."""
        ranked = {measure: ranks(scores) for measure, scores in self.scores.items()}
        return {
            "model": self.model,
            "public_text": self.public_text,
            "num_blocks": self.num_blocks,
            "block_tokens": self.block_tokens,
            "layers": [
                {
                    "index": index,
                    "scores": {measure: scores[index] for measure, scores in self.scores.items()},
                    "ranks": {measure: places[index] for measure, places in ranked.items()},
                }
                for index in range(len(self.scores["importance"]))
            ],
            "rank_correlation": {
                first: {second: self.correlation(first, second) for second in self.scores} for first in self.scores
            },
            "costs": [asdict(cost) for cost in self.costs],
        }


def report_layers(run: RunFile, num_blocks: int, reporter: Reporter) -> LayerReport:
    """Scores every layer of the run file's model by importance and by all controls.

    The controls read the first ``num_blocks`` blocks of the public text, or all if there are fewer. Importance is
    estimated only if no report of it is found.

    Raises:
        ModelError: the model cannot be loaded, or a control is undefined for it.
        DataError: the public text cannot be read or is too short.
    """
    full = load_full_model(run.model, reporter)
    workbench = Workbench(full, run, reporter)
    importance = workbench.importance()
    blocks, layers = workbench.blocks()[:num_blocks], full.layout.num_layers
    reading: dict[str, Any] = {"batch_size": run.importance.batch_size, "reporter": reporter}
    losses, losses_seconds = _timed(lambda: leave_one_out(full, blocks, **reading))
    changes, changes_seconds = _timed(lambda: activation_changes(full, blocks, **reading))
    return LayerReport(
        model=run.model.source,
        public_text=run.importance.text,
        num_blocks=blocks.shape[0],
        block_tokens=blocks.shape[1],
        scores={
            "importance": importance.scores,
            "leave_one_out": losses,
            "angular_change": changes.angular_change,
            "cka": changes.cka,
            "random": random_scores(layers, run.seed),
        },
        costs=(
            Cost(("importance",), importance.seconds, _importance_blocks(importance.settings) * blocks.shape[1]),
            Cost(("leave_one_out",), losses_seconds, (layers + 1) * blocks.numel()),
            Cost(("angular_change", "cka"), changes_seconds, blocks.numel()),
            Cost(("random",), 0.0, 0),
        ),
    )


def _timed(compute: Callable[[], Result]) -> tuple[Result, float]:
    started = time.monotonic()
    return compute(), time.monotonic() - started


def _importance_blocks(settings: ImportanceSettings) -> int:
    """Returns the blocks that Dynamic LayerReplace reads at most: the last batch of an epoch can be smaller."""
    fitting = settings.closed_form_blocks if settings.harmonizer_start == "closed_form" else 0
    comparisons = settings.steps // settings.score_every_steps * settings.candidates
    readers = 2 if settings.hidden_state_weight else 1  # the full model reads every training batch too
    return fitting + (readers * settings.steps + comparisons) * settings.batch_size
