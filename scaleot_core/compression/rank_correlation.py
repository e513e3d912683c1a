"""Whether two scores of the same layers put them in the same order."""

import math
from collections.abc import Sequence


def ranks(scores: Sequence[float]) -> tuple[float, ...]:
    """Returns the place of each score, 1 for the highest; equal scores share the mean of their places."""
    return tuple(
        sum(other > score for other in scores) + (sum(other == score for other in scores) + 1) / 2 for score in scores
    )


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Returns Spearman's rank correlation, from -1 to 1; ``None`` where one side's scores are all equal.

    Pearson's correlation of the ranks, so that it holds with ties as well.
    """
    middle = (len(first) + 1) / 2
    x, y = ([rank - middle for rank in ranks(scores)] for scores in (first, second))
    scale = math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
    return sum(a * b for a, b in zip(x, y, strict=True)) / scale if scale else None
