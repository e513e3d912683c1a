import math

import pytest
import torch

from fl_server.checkpoint import best_round


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([None, None, None], 3),
        ([0.5, 0.3, 0.4], 2),
        ([0.3, 0.3], 1),
        ([math.nan, 0.7, math.inf], 2),
        ([math.nan, math.inf], 2),
        ([0.4], 1),
    ],
)
def test_the_least_validation_loss_wins_or_the_last_round(losses: list[float | None], expected: int) -> None:
    adapters = [{"a": torch.tensor(float(i))} for i in range(1, len(losses) + 1)]
    number, adapter = best_round(zip(adapters, losses, strict=True))
    assert (number, float(adapter["a"])) == (expected, expected)
