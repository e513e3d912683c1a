"""Answers in a model's own words: greedy generation, exact match and F1."""

import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from scaleot_core.progress import Reporter
from scaleot_core.training.encoding import encode_contexts

MAX_ANSWER_TOKENS = 32
"""An answer is cut after this many tokens; SQuAD's and WebQuestions' answers rarely have more than ten."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def generate_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    contexts: Sequence[str],
    *,
    max_tokens: int,
    batch_tokens: int,
    reporter: Reporter,
) -> tuple[str, ...]:
    """Returns the model's most likely next tokens after each context, up to the end-of-text token or a line's end.

    ``max_tokens`` bounds context and answer together; too long a context loses its beginning. Only contexts with
    the same number of tokens share a batch, so nothing is padded and an answer does not depend on its neighbours.
    """
    answer_tokens = min(MAX_ANSWER_TOKENS, max_tokens // 2)
    encoded = encode_contexts(contexts, tokenizer, max_tokens=max_tokens - answer_tokens)
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, token_ids in enumerate(encoded):
        by_length[len(token_ids)].append(index)
    answers = [""] * len(contexts)
    with reporter.stage("answer", steps=len(contexts)) as stage, torch.inference_mode():
        for length, indices in sorted(by_length.items(), reverse=True):
            size = max(batch_tokens // (length + answer_tokens), 1)
            for begin in range(0, len(indices), size):
                batch = indices[begin : begin + size]
                lines = _generate(model, tokenizer, [encoded[index] for index in batch], answer_tokens)
                for index, line in zip(batch, lines, strict=True):
                    answers[index] = line
                stage.advance(len(batch))
    return tuple(answers)


def exact_match(prediction: str, answers: Iterable[str]) -> float:
    """Returns 1 if the prediction equals one of the answers after normalisation, else 0 (Rajpurkar et al., 2016)."""
    return max(float(_normalized(prediction) == _normalized(answer)) for answer in answers)


def f1(prediction: str, answers: Iterable[str]) -> float:
    """Returns the largest F1, over the answers, of the normalised words that both have (Rajpurkar et al., 2016)."""
    return max(_word_f1(_normalized(prediction).split(), _normalized(answer).split()) for answer in answers)


def _normalized(text: str) -> str:
    """Returns the text as SQuAD compares it: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _word_f1(predicted: list[str], expected: list[str]) -> float:
    if not predicted or not expected:
        return float(predicted == expected)
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected))


def _generate(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, contexts: list[tuple[int, ...]], answer_tokens: int
) -> list[str]:
    """Returns the first line of what follows each of ``contexts``, all of one length."""
    input_ids = torch.tensor(contexts, device=next(model.parameters()).device)
    generated: list[list[int]] = [[] for _ in contexts]
    running = list(range(len(contexts)))
    cache = None
    for _ in range(answer_tokens):
        output = model(input_ids=input_ids, cache=cache, use_cache=True, logits_to_keep=1)
        cache = output.cache
        next_tokens: list[int] = output.logits[:, -1].argmax(dim=-1).tolist()
        for index, token in zip(running, next_tokens, strict=True):
            generated[index].append(token)
        is_open = [not _is_finished(generated[index], tokenizer) for index in running]
        running = [index for index, is_kept in zip(running, is_open, strict=True) if is_kept]
        if not running:
            break
        kept = torch.tensor(is_open)  # on the CPU: the layers of a cache can lie on several devices
        if not all(is_open):
            cache.batch_select_indices(kept.nonzero()[:, 0])
        input_ids = _column(next_tokens, input_ids)[kept]
    return [_first_line(tokens, tokenizer) for tokens in generated]


def _column(tokens: list[int], like: Tensor) -> Tensor:
    return torch.tensor(tokens, device=like.device)[:, None]


def _is_finished(tokens: list[int], tokenizer: PreTrainedTokenizerFast) -> bool:
    return tokens[-1] == tokenizer.eos_token_id or "\n" in tokenizer.decode(tokens)


def _first_line(tokens: list[int], tokenizer: PreTrainedTokenizerFast) -> str:
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)
    return text.split("\n", 1)[0].strip()
