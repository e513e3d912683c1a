"""The generators that anybody can seed, put in a known state: where an audit looks for noise that follows from them."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

PUBLIC_SEED = 0
"""Of every run of an audit, as a run file's seed would set it."""


@contextmanager
def public_generators() -> Iterator[None]:
    """Puts the generators of PyTorch, NumPy and Python in one known state, and back into theirs afterwards."""
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(PUBLIC_SEED)
            np.random.seed(PUBLIC_SEED)
            random.seed(PUBLIC_SEED)
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)
