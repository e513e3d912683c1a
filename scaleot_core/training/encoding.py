"""From records to token ids: what a model reads, and from which token on it is trained and scored.

A context and what follows it are tokenised together and cut where the context's own tokens end, as
lm-evaluation-harness does, so that training and evaluation see the same tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from transformers import PreTrainedTokenizerFast

from scaleot_core.errors import DataError
from scaleot_core.shapes import TokenIds
from scaleot_core.training.chat import chat_pairs
from scaleot_core.training.records import (
    AnswerRecord,
    ChatRecord,
    ChoiceRecord,
    CompletionRecord,
    Record,
    TextRecord,
)

IGNORED_LABEL = -100
"""The label of a token without loss, in transformers and torch."""

LENGTH_MULTIPLE = 8
"""What a batch's length is a multiple of.

oneDNN compiles its bfloat16 kernels anew for every shape and keeps them: 10 MiB for each new shape of a batch, and two
of three batches of short texts would have a shape of their own. On texts of 44 tokens it is 8 % more tokens.
"""

_TEXTS_PER_CALL = 64
_MIN_TOKENS = 2


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """One sequence; loss is taken on ``token_ids[target_start:]`` only, each predicted from all tokens before it."""

    token_ids: tuple[int, ...]
    target_start: int

    def __post_init__(self) -> None:
        if not 1 <= self.target_start < len(self.token_ids):
            raise ValueError(f"expected 1 <= target_start < {len(self.token_ids)}, got {self.target_start}")


STAND_IN = EncodedExample((0, 0), 1)
"""What a record that cannot be encoded becomes under a mechanism of privacy: token 0 twice, which every model has.

It is the same for all such records, so that its clipped term in a sum depends on none of them. It has a target, because
the mean over a batch without any is not a number.
"""


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right to one length; a causal model never looks right, so it needs no mask."""

    input_ids: TokenIds
    labels: TokenIds
    """``input_ids`` where there is loss, -100 elsewhere; not shifted, as transformers' models expect."""


def encode_for_training(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerFast, *, max_tokens: int
) -> tuple[EncodedExample, ...]:
    """Returns the training examples of ``records``, with loss on what the model should say and on nothing else.

    - choice: the right choice after the context; answer: the first answer; completion: the target. The last two
      end with the end-of-text token, so that a tuned model stops; a choice does not, because it is scored without.
    - chat: one example for each turn of the assistant, with the conversation so far as its context. This works
      with every template, at the price of reading early turns again. A tokenizer without a template
      gets a plain one.
    - text: every token but the first, then the end-of-text token. A long text gives several examples; each begins
      with the last token of the one before, so that every token is predicted once. An empty text gives none.

    Too long a context loses its beginning; a target that does not fit alone loses its end.

    Raises:
        DataError: no example comes out, a chat template refuses a conversation, or ``max_tokens`` is below 2.
    """
    texts = [record.text for record in records if isinstance(record, TextRecord)]
    pairs = chain.from_iterable(_training_pairs(record, tokenizer) for record in records)
    examples = (
        *encode_pairs(tuple(pairs), tokenizer, max_tokens=max_tokens),
        *chain.from_iterable(_encode_texts(texts, tokenizer, max_tokens=max_tokens)),
    )
    return _some(examples)


def encode_first_examples(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_tokens: int,
    vocabulary_size: int | None = None,
) -> tuple[EncodedExample, ...]:
    """Returns one example for each record, whatever it holds: the first that ``encode_for_training`` would make of it.

    One record more or less is then one example more or less, which is what a privacy mechanism's unit promises: of a
    long text its beginning is used, of a chat its first answer. Tokenizer and chat template are the model owner's. So
    that neither the number of examples nor an error says what they make of a record, one that is empty, that they
    refuse, or that has a token from ``vocabulary_size`` on becomes ``STAND_IN``.

    Raises:
        DataError: there is no record, or ``max_tokens`` is below 2.
    """
    _check_room(max_tokens)
    examples: list[EncodedExample] = []
    for begin in range(0, len(records), _TEXTS_PER_CALL):
        some = records[begin : begin + _TEXTS_PER_CALL]
        together = _first_or_none(some, tokenizer, max_tokens)
        if together is None or len(together) < len(some):
            alone = [_first_or_none([record], tokenizer, max_tokens) for record in some]
            together = [first[0] if first else STAND_IN for first in alone]
        examples += together
    if vocabulary_size is not None:
        examples = [one if max(one.token_ids) < vocabulary_size else STAND_IN for one in examples]
    return _some(tuple(examples))


def _first_or_none(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerFast, max_tokens: int
) -> list[EncodedExample] | None:
    """Returns the first examples of those records that have one, or nothing where one record cannot be encoded."""
    texts = [record.text for record in records if isinstance(record, TextRecord)]
    try:
        pairs = [pair for record in records for pair in _training_pairs(record, tokenizer)[:1]]
        blocks = _encode_texts(texts, tokenizer, max_tokens=max_tokens)
        return [*encode_pairs(pairs, tokenizer, max_tokens=max_tokens), *(block[0] for block in blocks if block)]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 - a template raises what its author likes, and a panic in Rust is no Exception
        return None


def _check_room(max_tokens: int) -> None:
    if max_tokens < _MIN_TOKENS:
        raise DataError(f"expected room for at least {_MIN_TOKENS} tokens in an example, got {max_tokens}")


def _some(examples: tuple[EncodedExample, ...]) -> tuple[EncodedExample, ...]:
    if not examples:
        raise DataError("the records hold no text to train on: expected at least two tokens in one of them")
    return examples


def encode_pairs(
    pairs: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, *, max_tokens: int
) -> tuple[EncodedExample, ...]:
    """Returns one example of at most ``max_tokens`` tokens for each context and the text that follows it.

    The target begins at the first token in which the whole differs from the context alone. (lm-evaluation-harness
    cuts after as many tokens as the context has: the same, except where a token reaches over the boundary.) A
    begin-of-text token stands in front if the tokenizer puts one there by itself, and before an empty context.

    Raises:
        DataError: ``max_tokens`` is below 2, or the tokenizer finds no token in a target.
    """
    _check_room(max_tokens)
    contexts = _tokenize([context for context, _ in pairs], tokenizer)
    wholes = _tokenize([context + target for context, target in pairs], tokenizer)
    opening = opening_tokens(tokenizer)
    examples = []
    for context_ids, whole_ids in zip(contexts, wholes, strict=True):
        start = min(_common_length(context_ids, whole_ids), len(whole_ids) - 1)
        if start < 0:
            raise DataError("the tokenizer finds no token in a target")
        front = opening or (() if start else _document_start(tokenizer))
        examples.append(_fitted(front, whole_ids, start, max_tokens))
    return tuple(examples)


def encode_contexts(
    contexts: Sequence[str], tokenizer: PreTrainedTokenizerFast, *, max_tokens: int
) -> list[tuple[int, ...]]:
    """Returns the tokens after which each context is gone on from: those before the target in ``encode_pairs``.

    Raises:
        DataError: ``max_tokens`` leaves no room for a token of the context.
    """
    opening = opening_tokens(tokenizer)
    room = max_tokens - len(opening)
    if room < 1:
        raise DataError(f"expected room for at least {len(opening) + 1} tokens of a context, got {max_tokens}")
    encoded = []
    for token_ids in _tokenize([context.rstrip() for context in contexts], tokenizer):
        body = token_ids[len(opening) :] if opening and token_ids[: len(opening)] == opening else token_ids
        encoded.append((opening or (() if body else _document_start(tokenizer))) + body[-room:])
    return encoded


def continuation(context: str, target: str) -> tuple[str, str]:
    """Returns the two texts so that context and target meet as in running text: with one space between.

    White space that already ends the context or begins the target is taken instead. It always goes with the
    target, as in lm-evaluation-harness, because tokenizers join a space to the word after it.
    """
    head = context.rstrip()
    space = context[len(head) :] or (" " if head and not target[0].isspace() else "")
    return head, space + target


def text_blocks(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerFast, *, block_tokens: int
) -> tuple[EncodedExample, ...]:
    """Returns the text of ``records`` as blocks of ``block_tokens`` tokens, every token but the first a target.

    The texts are joined, each ended by the end-of-text token, and cut. What is left over at the end is dropped,
    unless it is all there is. Where the tokenizer puts a begin-of-text token in front, every block has one.

    Raises:
        DataError: a record is no text, ``block_tokens`` is below 2, or there are fewer than two tokens in all.
    """
    texts = [record.text for record in records if isinstance(record, TextRecord)]
    if len(texts) < len(records):
        raise DataError('expected records of text: {"text"}')
    opening = opening_tokens(tokenizer)
    step = block_tokens - len(opening)
    if step < 1 or block_tokens < _MIN_TOKENS:
        raise DataError(f"expected blocks of at least {_MIN_TOKENS} tokens, got {block_tokens}")
    token_ids = list(chain.from_iterable(_tokenize(_ended(texts, tokenizer), tokenizer)))
    ends = range(step, len(token_ids) + 1, step) or (len(token_ids),)
    blocks = [opening + tuple(token_ids[max(end - step, 0) : end]) for end in ends]
    if len(blocks[0]) < _MIN_TOKENS:
        raise DataError(f"the text has {len(blocks[0])} tokens: expected at least {_MIN_TOKENS}")
    return tuple(EncodedExample(block, 1) for block in blocks)


def collate(examples: Sequence[EncodedExample], pad_token_id: int, device: torch.device) -> Batch:
    """Returns ``examples`` as one batch, padded on the right to the next ``LENGTH_MULTIPLE`` after the longest.

    A model whose number of positions is no such multiple has no room for an example of its full length.
    """
    longest = max(len(example.token_ids) for example in examples)
    shape = (len(examples), -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE)
    input_ids = torch.full(shape, pad_token_id)
    labels = torch.full(shape, IGNORED_LABEL)
    for row, example in enumerate(examples):
        token_ids = torch.tensor(example.token_ids)
        input_ids[row, : len(token_ids)] = token_ids
        labels[row, example.target_start : len(token_ids)] = token_ids[example.target_start :]
    return Batch(input_ids.to(device), labels.to(device))


def opening_tokens(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Returns the begin-of-text token if the tokenizer puts one in front of every text by itself, else nothing."""
    begin = tokenizer.bos_token_id
    alone = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a", add_special_tokens=True)["input_ids"]
    return (begin,) if begin is not None and whole[:1] == [begin] != alone[:1] else ()


def _training_pairs(record: Record, tokenizer: PreTrainedTokenizerFast) -> tuple[tuple[str, str], ...]:
    end = tokenizer.eos_token or ""
    match record:
        case ChoiceRecord(context, choices, label):
            return (continuation(context, choices[label]),)
        case AnswerRecord(context, answers):
            return (continuation(context, answers[0] + end),)
        case CompletionRecord(context, target):
            return (continuation(context, target + end),)
        case ChatRecord():
            return chat_pairs(record, tokenizer)
        case TextRecord():
            return ()


def _encode_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, *, max_tokens: int
) -> Iterator[list[EncodedExample]]:
    """Yields the examples of each text that is not empty."""
    opening = opening_tokens(tokenizer)
    filled = [text for text in texts if text]
    for token_ids in _tokenize(_ended(filled, tokenizer), tokenizer):
        whole = opening + token_ids
        begins = range(0, len(whole) - 1, max_tokens - 1)
        yield [EncodedExample(whole[begin : begin + max_tokens], 1) for begin in begins]


def _ended(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return [text + (tokenizer.eos_token or "") for text in texts]


def _tokenize(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> list[tuple[int, ...]]:
    token_ids: list[tuple[int, ...]] = []
    for begin in range(0, len(texts), _TEXTS_PER_CALL):  # an encoding holds ten times what its ids take
        encoded = tokenizer(list(texts[begin : begin + _TEXTS_PER_CALL]), add_special_tokens=False, verbose=False)
        token_ids.extend(map(tuple, encoded["input_ids"]))
    return token_ids


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    length = min(len(first), len(second))
    return next((index for index in range(length) if first[index] != second[index]), length)


def _document_start(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return (token_id,)
    raise DataError("an empty context needs a tokenizer with a begin-of-text or end-of-text token")


def _fitted(front: tuple[int, ...], whole: tuple[int, ...], start: int, max_tokens: int) -> EncodedExample:
    if front and whole[: len(front)] == front and start >= len(front):  # the text brings its own
        whole, start = whole[len(front) :], start - len(front)
    room = max_tokens - len(front) - (len(whole) - start)
    kept = min(start, max(room, 0 if front else 1))
    token_ids = front + whole[start - kept :]
    return EncodedExample(token_ids[:max_tokens], len(front) + kept)
