"""What an update looks like beside the others: noted for people, and never a reason to refuse it.

Data owners differ, and an honest update may look odd. So these flags stand in a round's record, and whoever runs the
federation asks the organisation. A free rider that adds a little noise to what it copies has no flag.
"""

from collections.abc import Mapping
from enum import StrEnum
from itertools import combinations

import torch
from torch import Tensor

from scaleot_core.seeds import generator_for
from scaleot_core.shapes import TensorDict

BUCKETS = 4096
SAME_COSINE = 0.999
"""Two steps whose cosine is above this are one and the same."""
ZERO_SHARE = 0.01
"""A step shorter than this share of the round's median step is none."""


class Flag(StrEnum):
    """What is odd about an update; the codes are stable."""

    ZERO = "F_ZERO"
    """It hardly moves the adapter."""
    ECHO = "F_ECHO"
    """It is the step that the federation took the round before."""
    COPY = "F_COPY"
    """It is another client's step."""


def sketch_of(state: TensorDict, base: TensorDict | None, *, seed: int) -> Tensor:
    """Returns a sketch of the step from ``base`` (from nothing if there is none), float64, (``BUCKETS``,).

    A count sketch (Charikar et al., 2002): every number goes with a random sign into a random bucket, the same for all
    steps of one ``seed``. Inner products of sketches are those of the steps, but for an error of about
    1 / sqrt(``BUCKETS``) of both lengths; of steps whose cosine is near 1 the error of the cosine shrinks with what it
    lacks to 1, so that ``SAME_COSINE`` is told apart to about 2e-5. The server holds 32 KiB of each update, however
    large it is.
    """
    sketch = torch.zeros(BUCKETS, dtype=torch.float64)
    for name, tensor in state.items():
        step = tensor.double() if base is None else tensor.double() - base[name].double()
        drawn = torch.randint(2 * BUCKETS, (step.numel(),), generator=generator_for(seed, "sketch", name))
        sketch.index_add_(0, drawn // 2, step.flatten() * (2 * (drawn % 2) - 1))
    return sketch


def flags_of(steps: Mapping[str, Tensor], last_step: Tensor | None) -> dict[str, tuple[Flag, ...]]:
    """Returns what is odd about the clients' steps, of whom anything is; all are sketches of one seed.

    ``last_step`` is the federation's own of the round before, if there was one.
    """
    flags: dict[str, set[Flag]] = {client: set() for client in steps}
    median = float(torch.stack([step.norm() for step in steps.values()]).median()) if steps else 0.0
    for client, step in steps.items():
        if float(step.norm()) <= ZERO_SHARE * median:
            flags[client].add(Flag.ZERO)
        elif last_step is not None and _cosine(step, last_step) > SAME_COSINE:
            flags[client].add(Flag.ECHO)
    for one, other in combinations(steps, 2):
        if Flag.ZERO not in flags[one] | flags[other] and _cosine(steps[one], steps[other]) > SAME_COSINE:
            flags[one].add(Flag.COPY)
            flags[other].add(Flag.COPY)
    return {client: tuple(sorted(found)) for client, found in flags.items() if found}


def _cosine(one: Tensor, other: Tensor) -> float:
    lengths = float(one.norm() * other.norm())
    return float(one @ other) / lengths if lengths else 0.0
