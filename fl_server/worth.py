"""What the adapters of a federation are worth: the chosen one in the emulator, and plugged into the full model."""

from collections.abc import Sequence
from dataclasses import dataclass

from fl_server.checkpoint import best_round
from fl_server.compress import compiled_as_asked
from fl_server.data import Data
from fl_server.stopwatch import Stopwatch
from scaleot_core.adapters.plug_in import plugged_in
from scaleot_core.adapters.spec import AdapterSpec
from scaleot_core.compression.emulator import Emulator
from scaleot_core.evaluation import Metrics, evaluate
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import Reporter
from scaleot_core.run_file import ModelSection
from scaleot_core.shapes import TensorDict
from scaleot_core.training.data import Record


@dataclass(frozen=True)
class Evaluator:
    """Measures models on the model owner's held-out records, or on others, and says what is being measured."""

    section: ModelSection
    data: Data
    watch: Stopwatch
    reporter: Reporter

    def __call__(
        self, title: str, held: LanguageModel | Emulator, records: tuple[Record, ...] | None = None
    ) -> Metrics:
        """Returns the measures; ``title`` is for people who wait."""
        self.reporter.note(f"evaluating: {title}")
        with self.watch.stage("evaluate"), compiled_as_asked(self.section, held):
            return evaluate(held.model, held.tokenizer, records or self.data.test, reporter=self.reporter)


@dataclass(frozen=True)
class Worth:
    """The three measures that need a federation, and the adapter that they are of."""

    emulator_zero_shot: Metrics
    emulator_tuned: Metrics
    plug_in: Metrics
    adapter: TensorDict


def measure_worth(
    full: LanguageModel,
    emulator: Emulator,
    spec: AdapterSpec,
    adapters: Sequence[TensorDict],
    measure: Evaluator,
) -> Worth:
    """Measures the last of the rounds' adapters or, with validation records, the best one on the emulator.

    Both models are left as they were.
    """
    emulator_zero_shot = measure("emulator zero-shot", emulator)
    adapter = _best_adapter(emulator, spec, adapters, measure)
    with plugged_in(emulator.model, emulator.layout, spec, adapter):
        emulator_tuned = measure("emulator tuned", emulator)
    with plugged_in(full.model, full.layout, spec, adapter):
        plug_in = measure("plug-in", full)
    return Worth(emulator_zero_shot, emulator_tuned, plug_in, adapter)


def _best_adapter(
    emulator: Emulator, spec: AdapterSpec, adapters: Sequence[TensorDict], measure: Evaluator
) -> TensorDict:
    if not measure.data.validation:
        return adapters[-1]
    candidates: list[tuple[TensorDict, float | None]] = []
    for adapter in adapters:
        with plugged_in(emulator.model, emulator.layout, spec, adapter):
            metrics = measure("a round's adapter, on validation records", emulator, measure.data.validation)
        candidates.append((adapter, metrics.loss))
    return best_round(candidates)[1]
