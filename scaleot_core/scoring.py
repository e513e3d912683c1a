"""How likely a model finds given token sequences: one batched pass, logits only where they are needed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scaleot_core.progress import Reporter
from scaleot_core.training.encoding import EncodedExample

BATCH_TOKENS = 2048
"""Tokens in one forward pass, padding counted: logits for a vocabulary of 50 000 take 200 MB in bfloat16."""

_LOGIT_ROWS_AT_ONCE = 256


class Score(NamedTuple):
    """How likely a target is."""

    log_probability: float
    """Sum over the target's tokens of the natural logarithm of their probability."""
    num_tokens: int


@dataclass
class _Prefix:
    """Tokens that are read once, and the examples that go on from them with one more token each."""

    token_ids: tuple[int, ...]
    target_start: int
    last_tokens: list[tuple[int, int]] = field(default_factory=list)
    """The index of an example and its last token."""


def score_examples(
    model: nn.Module, examples: Sequence[EncodedExample], *, batch_tokens: int, reporter: Reporter
) -> tuple[Score, ...]:
    """Returns the log-likelihood of each example's target given the tokens before it.

    Examples that differ in nothing but their last token share one row of a batch: the answers of a classification
    task cost one reading of the context. Rows are sorted by length into batches of at most ``batch_tokens`` tokens
    (one row at least). Batches only group rows, so ``batch_tokens`` changes a score by no more than rounding.

    Padding stands on the right, where a causal model cannot see it, and no attention mask is needed. The model's
    own forward makes logits at the target positions alone; their softmax is taken in float32.
    """
    prefixes: dict[tuple[tuple[int, ...], int], _Prefix] = {}
    for index, example in enumerate(examples):
        key = (example.token_ids[:-1], example.target_start)
        prefixes.setdefault(key, _Prefix(*key)).last_tokens.append((index, example.token_ids[-1]))
    sums = torch.zeros(len(examples), dtype=torch.float64)
    with reporter.stage("evaluate", steps=len(examples)) as stage, torch.inference_mode():
        for rows in _batches(list(prefixes.values()), batch_tokens):
            _add_log_probabilities(model, rows, sums)
            stage.advance(sum(len(row.last_tokens) for row in rows))
    return tuple(
        Score(log_probability, len(example.token_ids) - example.target_start)
        for log_probability, example in zip(sums.tolist(), examples, strict=True)
    )


def _batches(rows: list[_Prefix], batch_tokens: int) -> list[list[_Prefix]]:
    batches: list[list[_Prefix]] = []
    for row in sorted(rows, key=lambda row: -len(row.token_ids)):  # the largest first: it fails first if it must
        longest = len(batches[-1][0].token_ids) if batches else batch_tokens
        if not batches or longest * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def _add_log_probabilities(model: nn.Module, rows: Sequence[_Prefix], sums: Tensor) -> None:
    """Adds to ``sums`` the log-probability of every target token of every example in ``rows``."""
    device = next(model.parameters()).device
    input_ids = torch.zeros(len(rows), len(rows[0].token_ids), dtype=torch.long)
    is_needed = torch.zeros_like(input_ids, dtype=torch.bool)
    queries: list[tuple[int, int, int]] = []  # example, its logits' place among the needed ones, token
    place = 0
    for number, row in enumerate(rows):
        length = len(row.token_ids)
        input_ids[number, :length] = torch.tensor(row.token_ids)
        is_needed[number, row.target_start - 1 : length] = True
        shared = row.token_ids[row.target_start :]
        for index, last_token in row.last_tokens:
            queries += [(index, place + offset, token) for offset, token in enumerate((*shared, last_token))]
        place += len(shared) + 1
    logits = model(input_ids=input_ids.to(device), logits_to_keep=is_needed.to(device), use_cache=False).logits
    examples, places, tokens = torch.tensor(queries).unbind(dim=1)
    sums.index_add_(0, examples, _log_probabilities(logits, places, tokens).double().cpu())


def _log_probabilities(logits: Tensor, places: Tensor, tokens: Tensor) -> Tensor:
    """Returns ``log softmax(logits)[places, tokens]`` without a float32 copy of all logits."""
    normalizers = torch.cat([rows.float().logsumexp(dim=-1) for rows in torch.split(logits, _LOGIT_ROWS_AT_ONCE)])
    places, tokens = places.to(logits.device), tokens.to(logits.device)
    return logits[places, tokens].float() - normalizers[places]
