"""Noise that was forgotten, under whichever law: the fault that an attack must show."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from scaleot_core.privacy.noise import NOISES
from scaleot_core.privacy.secret_random import SecretSource
from tests.support.attacks import ForgottenNoise


@contextmanager
def forgotten_noise() -> Iterator[SecretSource]:
    """Lends the source of a client whose noise is zero: normal numbers, and what is drawn by any law of scalars."""
    with pytest.MonkeyPatch.context() as patch:
        for law in NOISES.values():
            patch.setattr(law, "sample", lambda law, source, count: np.zeros(count))
        yield ForgottenNoise()
