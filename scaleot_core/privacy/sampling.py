"""Poisson sampling with secret coins: what the accountant's amplification by sampling assumes."""

from collections.abc import Sequence
from typing import TypeVar

from scaleot_core.privacy.secret_random import SecretSource

Sampled = TypeVar("Sampled")


def poisson_sample(records: Sequence[Sampled], sample_rate: float, secret: SecretSource) -> list[Sampled]:
    """Returns the records whose coins say so: each independently, with exactly the probability ``sample_rate``.

    The sample may be empty or hold every record, and its size is as secret as its members. Shuffled batches of one
    size are no such sample: accounted as one, they leak up to four times what is claimed (Annamalai et al. 2024).

    Raises:
        InputError: ``sample_rate`` is not from 0 to 1.
    """
    coins = secret.coins(sample_rate, len(records))
    return [record for record, is_in in zip(records, coins.tolist(), strict=True) if is_in]
