"""Which clients take part in a round."""

import random
from collections.abc import Iterable

from scaleot_core.seeds import derive_seed


def select_cohort(clients: Iterable[str], *, size: int, seed: int, round_number: int) -> tuple[str, ...]:
    """Draws ``size`` of the clients by name, uniformly and without replacement; fewer if there are fewer.

    The draw depends on seed, round and the set of names alone, so it repeats on every engine. The result is sorted:
    its order is the order of aggregation.
    """
    names = sorted(clients)
    draw = random.Random(derive_seed(seed, "cohort", round_number))  # noqa: S311 - a fair draw, no secret
    return tuple(sorted(draw.sample(names, min(size, len(names)))))
