"""Which round's adapter is plugged in: the last, or the best on validation records inside the emulator.

The emulator's validation loss is the only one that a data owner sees, and what the published figures choose by.
"""

import math
from collections.abc import Iterable

from scaleot_core.shapes import TensorDict


def best_round(candidates: Iterable[tuple[TensorDict, float | None]]) -> tuple[int, TensorDict]:
    """Returns number (from 1) and adapter of the round with the least validation loss; without losses, of the last.

    Of equal losses the earlier round wins; a loss that is not finite never does, unless there is no other.
    """
    best, best_loss = (0, TensorDict()), math.inf
    for number, (adapter, loss) in enumerate(candidates, start=1):
        if loss is None or loss < best_loss or not math.isfinite(best_loss):
            best, best_loss = (number, adapter), math.inf if loss is None else loss
    return best
