"""The reference that nobody could run in earnest: the full model tuned on the pooled text."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from fl_server.checkpoint import best_round
from fl_server.compress import compiled_as_asked
from fl_server.data import Data
from scaleot_core.adapters.adapter import attach_adapter
from scaleot_core.adapters.spec import AdapterKind, AdapterSpec
from scaleot_core.evaluation import evaluate
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import Reporter
from scaleot_core.run_file import RunFile
from scaleot_core.seeds import derive_seed
from scaleot_core.shapes import TensorDict
from scaleot_core.training.data import Record
from scaleot_core.training.local import LocalTraining, take_steps, watch_steps
from scaleot_core.training.readable import readable_examples


def adapter_spec(run: RunFile, layers: Sequence[int]) -> AdapterSpec:
    """Returns the specification of the run file's adapter in these layers."""
    return AdapterSpec(
        kind=AdapterKind(run.adapter.kind),
        layers=tuple(layers),
        rank=run.adapter.rank,
        seed=derive_seed(run.seed, "adapter"),
        freezes_down=run.federation.aggregation == "ffa",
    )


@contextmanager
def full_fine_tuned(run: RunFile, full: LanguageModel, data: Data, reporter: Reporter) -> Iterator[LanguageModel]:
    """Lends the full model with an adapter of the run file's kind in every layer, tuned on the pooled text.

    It takes as many steps as one client over all rounds, in batches and at a learning rate of its own. Where there are
    validation records, the best of as many checkpoints as there are rounds counts, as for the federation's adapter;
    else the last. Nothing is averaged, so that LoRA's A learns whatever ``federation.aggregation`` is.
    """
    evaluation, federation = run.evaluation, run.federation
    examples = readable_examples(full, data.pooled, max_tokens=federation.max_tokens)
    reporter.note("full fine-tuning, the reference")
    spec = replace(adapter_spec(run, range(full.layout.num_layers)), freezes_down=False)
    attached = attach_adapter(full.model, full.layout, spec)
    try:
        steps = take_steps(
            attached.model,
            list(attached.trainable().values()),
            examples,
            LocalTraining(
                steps=federation.rounds * federation.local_steps,
                batch_size=evaluation.full_fine_tuning_batch_size,
                learning_rate=evaluation.full_fine_tuning_learning_rate,
                gradient_checkpointing=federation.gradient_checkpointing,
            ),
            pad_token_id=full.tokenizer.pad_token_id,
            seed=derive_seed(run.seed, "full fine-tuning"),
        )

        def checkpoints() -> Iterator[tuple[TensorDict, float | None]]:
            for _ in range(federation.rounds):
                watch_steps(steps, federation.local_steps, title="training", reporter=reporter)
                yield attached.state(), _loss(full, data.validation, reporter)

        with compiled_as_asked(run.model, full):
            attached.load(best_round(checkpoints())[1])
        yield full
    finally:
        attached.detach()


def _loss(full: LanguageModel, records: Sequence[Record], reporter: Reporter) -> float | None:
    return evaluate(full.model, full.tokenizer, records, reporter=reporter).loss if records else None
