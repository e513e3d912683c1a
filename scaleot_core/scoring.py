"""How likely a model finds given token sequences: one batched pass, logits only where they are needed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scaleot_core.models.logits import no_logits
from scaleot_core.progress import Reporter
from scaleot_core.training.encoding import EncodedExample

BATCH_TOKENS = {"cpu": 2048, "cuda": 8192}
"""Tokens in one forward pass, padding counted, by the type of device: fewer leave it idle, and a CPU gains no more.

Logits of all of them, for a vocabulary of 50 000 in bfloat16, take 200 MB and 800 MB.
"""

_LOGIT_ROWS_AT_ONCE = 256


class Score(NamedTuple):
    """How likely a target is."""

    log_probability: float
    """Sum over the target's tokens of the natural logarithm of their probability."""
    num_tokens: int


@dataclass
class _Row:
    """Tokens that are read once, and the examples that go on from them with one more token each."""

    token_ids: tuple[int, ...]
    target_start: int
    last_tokens: list[tuple[int, int]] = field(default_factory=list)
    """The index of an example and its last token."""

    @property
    def context(self) -> tuple[int, ...]:
        """The tokens before the target."""
        return self.token_ids[: self.target_start]


def score_examples(
    model: nn.Module, examples: Sequence[EncodedExample], *, batch_tokens: int, reporter: Reporter
) -> tuple[Score, ...]:
    """Returns the log-likelihood of each example's target given the tokens before it.

    Examples that differ in nothing but their last token share one row of a batch: the answers of a classification
    task cost one reading of the context. Rows are sorted by length into batches of at most ``batch_tokens`` tokens
    (one row at least). Where rows of a batch have a context in common, as the choices of a question do, it is read
    once (see ``_logits``). How examples are grouped changes a score by no more than rounding.

    Padding stands on the right, where a causal model cannot see it, and no attention mask is needed. The model's
    own forward makes logits at the target positions alone; their softmax is taken in float32.
    """
    rows: dict[tuple[tuple[int, ...], int], _Row] = {}
    for index, example in enumerate(examples):
        key = (example.token_ids[:-1], example.target_start)
        rows.setdefault(key, _Row(*key)).last_tokens.append((index, example.token_ids[-1]))
    sums = torch.zeros(len(examples), dtype=torch.float64)
    with reporter.stage("evaluate", steps=len(examples)) as stage, torch.inference_mode():
        for batch in _batches(list(rows.values()), batch_tokens):
            _add_log_probabilities(model, batch, sums)
            stage.advance(sum(len(row.last_tokens) for row in batch))
    return tuple(
        Score(log_probability, len(example.token_ids) - example.target_start)
        for log_probability, example in zip(sums.tolist(), examples, strict=True)
    )


def _batches(rows: Sequence[_Row], batch_tokens: int) -> list[list[_Row]]:
    """Returns the rows in batches, the longest first: it fails first if it must. A context's rows stay together."""
    longest_after: dict[tuple[int, ...], int] = {}
    for row in rows:
        longest_after[row.context] = max(longest_after.get(row.context, 0), len(row.token_ids))
    batches: list[list[_Row]] = []
    longest = 0
    for row in sorted(rows, key=lambda row: (-longest_after[row.context], row.context, -len(row.token_ids))):
        longest = max(longest, len(row.token_ids))
        if not batches or longest * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
            longest = len(row.token_ids)
        batches[-1].append(row)
    return batches


def _add_log_probabilities(model: nn.Module, rows: Sequence[_Row], sums: Tensor) -> None:
    """Adds to ``sums`` the log-probability of every target token of every example in ``rows``."""
    queries: list[tuple[int, int, int]] = []  # example, its logits' place among the needed ones, token
    place = 0
    for row in rows:
        shared = row.token_ids[row.target_start :]
        for index, last_token in row.last_tokens:
            queries += [(index, place + offset, token) for offset, token in enumerate((*shared, last_token))]
        place += len(shared) + 1
    examples, places, tokens = torch.tensor(queries).unbind(dim=1)
    sums.index_add_(0, examples, _log_probabilities(_logits(model, rows), places, tokens).double().cpu())


def _logits(model: nn.Module, rows: Sequence[_Row]) -> Tensor:
    """Returns the logits from the last token of each row's context on, row after row.

    If rows have a context in common, the beginnings of all contexts are read first, once each, into the key-value
    cache: as many tokens as the shortest context has, but one, so that they need no padding. The rows go on there.
    """
    device = next(model.parameters()).device
    places: dict[tuple[int, ...], int] = {}
    context_of_row = torch.tensor([places.setdefault(row.context, len(places)) for row in rows])
    begin = min(row.target_start for row in rows) - 1 if len(places) < len(rows) else 0
    cache = None
    if begin > 0:
        beginnings = torch.tensor([context[:begin] for context in places], device=device)
        cache = model(input_ids=beginnings, logits_to_keep=no_logits(), use_cache=True).cache
        cache.batch_select_indices(context_of_row)  # on the CPU: the layers of a cache can lie on several devices
    input_ids = torch.zeros(len(rows), max(len(row.token_ids) for row in rows) - begin, dtype=torch.long)
    is_needed = torch.zeros_like(input_ids, dtype=torch.bool)
    for number, row in enumerate(rows):
        length = len(row.token_ids) - begin
        input_ids[number, :length] = torch.tensor(row.token_ids[begin:])
        is_needed[number, row.target_start - 1 - begin : length] = True
    logits: Tensor = model(
        input_ids=input_ids.to(device),
        cache=cache,
        logits_to_keep=is_needed.to(device),
        use_cache=cache is not None,
    ).logits
    return logits


def _log_probabilities(logits: Tensor, places: Tensor, tokens: Tensor) -> Tensor:
    """Returns ``log softmax(logits)[places, tokens]`` without a float32 copy of all logits."""
    normalizers = torch.cat([rows.float().logsumexp(dim=-1) for rows in torch.split(logits, _LOGIT_ROWS_AT_ONCE)])
    places, tokens = places.to(logits.device), tokens.to(logits.device)
    return logits[places, tokens].float() - normalizers[places]
