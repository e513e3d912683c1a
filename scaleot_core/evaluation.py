"""How good a model is at a task: the one function behind every figure of a report, for all five models alike."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TypeVar

from torch import nn
from transformers import PreTrainedTokenizerFast

from scaleot_core.answering import exact_match, f1, generate_answers
from scaleot_core.errors import DataError
from scaleot_core.models.positions import num_positions
from scaleot_core.progress import Reporter
from scaleot_core.scoring import BATCH_TOKENS, Score, score_examples
from scaleot_core.training.chat import chat_pairs
from scaleot_core.training.encoding import continuation, encode_pairs, text_blocks
from scaleot_core.training.records import (
    AnswerRecord,
    ChatRecord,
    ChoiceRecord,
    CompletionRecord,
    Record,
    TextRecord,
)

TEXT_BLOCK_TOKENS = 512
"""Block length of perplexity on text, as in the published WikiText figures of offsite-tuning."""

_DEFAULT_WINDOW_TOKENS = 2048  # for the families whose configuration states none (BLOOM)
_LARGEST_EXPONENT = 700.0  # exp overflows a little above


@dataclass(frozen=True)
class Metrics:
    """What ``evaluate`` measured; ``None`` where a figure does not exist for the kind of record."""

    loss: float
    """Mean negative log-likelihood, in nats, of one target token; a mean over tokens, not over examples."""
    examples: int
    """Records that were evaluated."""
    perplexity: float | None = None
    """``exp(loss)``: text, completions and chats."""
    accuracy: float | None = None
    """From 0 to 1. Choices: the right one has the largest log-likelihood. Answers: exact match."""
    accuracy_norm: float | None = None
    """From 0 to 1. Choices: the right one has the largest log-likelihood per character of its text."""
    f1: float | None = None
    """From 0 to 1. Answers: mean over the records of the best F1 with one of the accepted answers."""
    by_record: tuple[float, ...] | None = field(default=None, repr=False)
    """What ``accuracy``, or where it exists ``f1``, is the mean of, record by record; only while the run lasts."""

    def to_json(self) -> dict[str, float | int | None]:
        """Returns the figures that exist; one that is not finite, as of a model that diverged, becomes null."""
        figures = asdict(replace(self, by_record=None))
        present = {name: value for name, value in figures.items() if value is not None}
        return {name: value if math.isfinite(value) else None for name, value in present.items()}


_R = TypeVar("_R", bound=Record)


@dataclass(frozen=True)
class _Examinee:
    """A model under evaluation and how it is fed."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerFast
    max_tokens: int
    batch_tokens: int
    reporter: Reporter

    def score(self, pairs: Sequence[tuple[str, str]]) -> tuple[Score, ...]:
        examples = encode_pairs(pairs, self.tokenizer, max_tokens=self.max_tokens)
        return score_examples(self.model, examples, batch_tokens=self.batch_tokens, reporter=self.reporter)


def evaluate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    records: Sequence[Record],
    *,
    batch_tokens: int | None = None,
    reporter: Reporter,
) -> Metrics:
    """Returns how well a causal language model does on records of one kind, zero-shot.

    - choice: every choice is scored after the context as lm-evaluation-harness does it (ties go to the first).
      ``accuracy`` is its ``acc``; ``accuracy_norm`` its ``acc_norm``, which divides by the choice's length in
      characters, not bytes and not tokens. ``loss`` is that of the right choices, the same as in training.
    - text: ``loss`` over the joined texts in blocks of ``TEXT_BLOCK_TOKENS`` (or what the model reads at most).
    - completion, chat: ``loss`` on the targets, or on what the assistant says. Other than in training, the
      end-of-text token after a completion is not counted.
    - answer: greedy generation for ``accuracy`` and ``f1``; ``loss`` on the first answer, without end-of-text.

    The model is put in eval mode for the time being. What does not fit in the model's window is cut as in training.

    Raises:
        DataError: no records, records of several kinds, or ones that cannot be encoded.
    """
    if not records:
        raise DataError("expected at least one record to evaluate on, got none")
    batch_tokens = batch_tokens or BATCH_TOKENS[next(model.parameters()).device.type]
    examinee = _Examinee(model, tokenizer, num_positions(model) or _DEFAULT_WINDOW_TOKENS, batch_tokens, reporter)
    with _eval_mode(model):
        match records[0]:
            case ChoiceRecord():
                return _evaluate_choices(examinee, _of_kind(records, ChoiceRecord))
            case AnswerRecord():
                return _evaluate_answers(examinee, _of_kind(records, AnswerRecord))
            case CompletionRecord():
                return _evaluate_completions(examinee, _of_kind(records, CompletionRecord))
            case ChatRecord():
                return _evaluate_chats(examinee, _of_kind(records, ChatRecord))
            case TextRecord():
                return _evaluate_text(examinee, _of_kind(records, TextRecord))


def _evaluate_choices(examinee: _Examinee, records: Sequence[ChoiceRecord]) -> Metrics:
    scores = iter(examinee.score([continuation(each.context, choice) for each in records for choice in each.choices]))
    gold, hits, normalized_hits = [], [], 0
    for record in records:
        own = [next(scores) for _ in record.choices]
        likelihoods = [score.log_probability for score in own]
        per_character = [
            likelihood / len(choice) for likelihood, choice in zip(likelihoods, record.choices, strict=True)
        ]
        gold.append(own[record.label])
        hits.append(float(_is_best(likelihoods, record.label)))
        normalized_hits += _is_best(per_character, record.label)
    count = len(records)
    return Metrics(
        _mean_loss(gold),
        count,
        accuracy=sum(hits) / count,
        accuracy_norm=normalized_hits / count,
        by_record=tuple(hits),
    )


def _evaluate_answers(examinee: _Examinee, records: Sequence[AnswerRecord]) -> Metrics:
    scores = examinee.score([continuation(each.context, each.answers[0]) for each in records])
    predictions = generate_answers(
        examinee.model,
        examinee.tokenizer,
        [each.context for each in records],
        max_tokens=examinee.max_tokens,
        batch_tokens=examinee.batch_tokens,
        reporter=examinee.reporter,
    )
    pairs = [(prediction, each.answers) for prediction, each in zip(predictions, records, strict=True)]
    count, shares = len(records), tuple(f1(*pair) for pair in pairs)
    return Metrics(
        _mean_loss(scores),
        count,
        accuracy=sum(exact_match(*pair) for pair in pairs) / count,
        f1=sum(shares) / count,
        by_record=shares,
    )


def _evaluate_completions(examinee: _Examinee, records: Sequence[CompletionRecord]) -> Metrics:
    return _likelihood(examinee.score([continuation(each.context, each.target) for each in records]), len(records))


def _evaluate_chats(examinee: _Examinee, records: Sequence[ChatRecord]) -> Metrics:
    pairs = [pair for chat in records for pair in chat_pairs(chat, examinee.tokenizer)]
    return _likelihood(examinee.score(pairs), len(records))


def _evaluate_text(examinee: _Examinee, records: Sequence[TextRecord]) -> Metrics:
    block_tokens = min(TEXT_BLOCK_TOKENS, examinee.max_tokens)
    blocks = text_blocks(records, examinee.tokenizer, block_tokens=block_tokens)
    scores = score_examples(examinee.model, blocks, batch_tokens=examinee.batch_tokens, reporter=examinee.reporter)
    return _likelihood(scores, len(records))


def _likelihood(scores: Sequence[Score], count: int) -> Metrics:
    loss = _mean_loss(scores)
    perplexity = math.exp(loss) if loss < _LARGEST_EXPONENT else math.inf
    return Metrics(loss, count, perplexity=perplexity if math.isfinite(loss) else math.nan)


def _mean_loss(scores: Sequence[Score]) -> float:
    return -sum(score.log_probability for score in scores) / sum(score.num_tokens for score in scores)


def _is_best(values: Sequence[float], label: int) -> bool:
    """Returns whether ``label`` is the first of the largest values; never where a value is not a number."""
    return all(map(math.isfinite, values)) and values.index(max(values)) == label


def _of_kind(records: Sequence[Record], kind: type[_R]) -> tuple[_R, ...]:
    chosen = tuple(record for record in records if isinstance(record, kind))
    if len(chosen) < len(records):
        raise DataError(
            f"expected every record to be a {kind.__name__} as the first one, got {len(chosen)} of {len(records)}"
        )
    return chosen


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
