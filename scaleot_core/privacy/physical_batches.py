"""Batches of fixed shapes, in which what is computed of an example does not depend on its company.

The proof of every mechanism here rests on one fact: a record more or less changes the sum by that record's own term
and by nothing else. A batch that is padded to its longest example breaks it. Kernels sum in another order when the
shape of a batch changes: in bfloat16 a record more then moves the gradients of all others in their second digit, and
their finite differences, rounding errors divided by the smoothing, by far more. At one shape each row is computed on
its own: neither its place nor the other rows change a bit of it (``gradient_way`` tries this on the machine at hand).

So the shape of an example's batch follows from its own length and public settings: lengths from a ladder, and as many
rows as were asked for, or fewer where they are long, some perhaps empty. A CPU pays for every token of padding, so that
its ladder has many rungs and a batch few rows; a GPU pays for every pass, so that most samples go in one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from scaleot_core.shapes import TokenIds
from scaleot_core.training.data import IGNORED_LABEL, EncodedExample

TargetPlaces = Int[Tensor, "batch targets"]
"""Something of each position at which a target may be predicted."""

_FIRST_RUNG = 8
_FIRST_RUNG_OF_GPU = 64
_MOST_TOKENS_WITH_ALL_ROWS = 32
"""In longer batches there are fewer rows, about as many tokens: rows that stay empty cost by their length."""
_GPU_ROWS_PER_EXPECTED = 1.25
"""Of 32 expected examples or more, Poisson samples that do not fit in a quarter more are rare."""
_GPU_PASS_TOKENS = 8_192
"""What a pass may have where there are rows for it: four of 2,560 took 4.7 times a step of 8,192 without noise."""
_MOST_GPU_GRADIENT_ROWS, _MOST_GPU_FORWARD_ROWS = 80, 160
_BATCHES_PER_SAMPLE = 4
"""Physical batches that a CPU cuts an expected sample in: with fewer, more rows stay empty in lengths that are rare."""
_FEWEST_ROWS, _MOST_ROWS = 4, 16
"""Fewer are slow on a CPU: a pass over one row of 64 tokens takes as long as one over two."""
_FORWARD_ROWS = 8


@dataclass(frozen=True)
class PhysicalBatch:
    """Examples padded on the right to a length that is public or each one's own; the last rows may be empty."""

    input_ids: TokenIds
    positions: TargetPlaces
    """Where logits are made: in each row as many consecutive positions, those before its targets among them."""
    labels: TargetPlaces
    """What is predicted at ``positions``; -100 where there is no loss."""
    num_examples: int
    """The first rows hold them."""


def physical_batches(
    examples: Sequence[EncodedExample], *, rows: int, pad_token_id: int, max_positions: int | None, device: torch.device
) -> Iterator[PhysicalBatch]:
    """Yields the examples in batches of ``rows_in`` their length, those of one shape together, each example once.

    ``max_positions`` is the model's number of positions, where it has one: no row is padded beyond it.
    """
    shapes: dict[tuple[int, int], list[EncodedExample]] = {}
    for example in examples:
        shapes.setdefault(_shape(example, max_positions, device), []).append(example)
    for (tokens, targets), alike in shapes.items():
        of_this_length = rows_in(tokens, rows, device)
        for start in range(0, len(alike), of_this_length):
            chosen = alike[start : start + of_this_length]
            yield _batch(chosen, (of_this_length, tokens, targets), pad_token_id, device)


def rows_in(tokens: int, rows: int, device: torch.device) -> int:
    """Returns the rows of a batch of ``tokens`` tokens a row where short ones have ``rows``: both are public."""
    if device.type == "cuda":
        tokens_with_all_rows, fewest_rows = _FIRST_RUNG_OF_GPU, _GPU_PASS_TOKENS // tokens
    else:
        tokens_with_all_rows, fewest_rows = _MOST_TOKENS_WITH_ALL_ROWS, _FEWEST_ROWS
    return max(rows * tokens_with_all_rows // max(tokens, tokens_with_all_rows), min(rows, fewest_rows), 1)


def gradient_rows(expected_batch_size: float, device: torch.device) -> int:
    """Returns how many rows suit the batches of a backward pass on a device."""
    if device.type == "cuda":
        return min(math.ceil(_GPU_ROWS_PER_EXPECTED * expected_batch_size), _MOST_GPU_GRADIENT_ROWS)
    return min(max(int(expected_batch_size) // _BATCHES_PER_SAMPLE, _FEWEST_ROWS), _MOST_ROWS)


def forward_rows(expected_batch_size: float, device: torch.device) -> int:
    """Returns how many rows suit the batches of a forward pass on a device."""
    if device.type == "cuda":
        return min(math.ceil(_GPU_ROWS_PER_EXPECTED * expected_batch_size), _MOST_GPU_FORWARD_ROWS)
    return _FORWARD_ROWS


def rung_above(count: int) -> int:
    """Returns the least number of the ladder 8, 16, 24, 32, 48, 64, 96, 128, ... that is ``count`` or more."""
    power = max(_FIRST_RUNG, 1 << (count - 1).bit_length())
    between = power * 3 // 4
    return between if between >= max(count, 3 * _FIRST_RUNG) else power


def _shape(example: EncodedExample, max_positions: int | None, device: torch.device) -> tuple[int, int]:
    length = len(example.token_ids)
    rung = rung_above(length)
    if device.type == "cuda":
        rung = max(1 << (length - 1).bit_length(), _FIRST_RUNG_OF_GPU)
    tokens = max(length, min(rung, max_positions or rung))
    return tokens, min(rung_above(length - example.target_start), tokens)


def _batch(
    examples: Sequence[EncodedExample], shape: tuple[int, int, int], pad_token_id: int, device: torch.device
) -> PhysicalBatch:
    rows, tokens, targets = shape
    input_ids = torch.full((rows, tokens), pad_token_id)
    following = torch.full((rows, tokens), IGNORED_LABEL)
    first = torch.zeros(rows, 1, dtype=torch.long)
    for row, example in enumerate(examples):
        token_ids, start = torch.tensor(example.token_ids), example.target_start
        input_ids[row, : len(token_ids)] = token_ids
        following[row, start - 1 : len(token_ids) - 1] = token_ids[start:]
        first[row] = min(start - 1, tokens - targets)
    positions = first + torch.arange(targets)
    labels = following.gather(1, positions)
    return PhysicalBatch(input_ids.to(device), positions.to(device), labels.to(device), len(examples))
