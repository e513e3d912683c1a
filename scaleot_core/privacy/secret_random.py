"""Randomness that nobody can repeat: where privacy noise and secret sampling come from, and nothing else.

The operating system's generator is read directly (``os.urandom``: ChaCha20 in Linux, reseeded by the kernel). There is
no state in this process: nothing to seed, to store, to copy into a forked child or to restore with a snapshot of it.
"""

import math
import os
from fractions import Fraction
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from scaleot_core.errors import InputError

Floats = NDArray[np.float64]
Coins = NDArray[np.bool_]

_WORD_BITS: Final = 64
_FRACTION_BITS: Final = 52
"""One less than float64 has, so that the middle of every step is a float64 too."""


class SecretSource:
    """A source of secret random numbers; it takes no seed, and cannot be copied or pickled.

    A function that draws noise takes a source, never a seed: who calls it cannot make the noise come out again. The
    published code of DPZero drew its noise from the generator it had just seeded with the public direction seed
    (Zhang et al. 2023, commit 485f236), which anyone could subtract.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "SecretSource()"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a SecretSource is not copied or pickled: make a new one where it is needed")

    def words(self, count: int) -> NDArray[np.uint64]:
        """Returns ``count`` independent uniform integers of 64 bits."""
        return np.frombuffer(os.urandom(8 * count), dtype=np.uint64)

    def uniform(self, count: int) -> Floats:
        """Returns ``count`` uniform numbers in the open interval (0, 1), on the odd multiples of 2**-53."""
        steps = (self.words(count) >> np.uint64(_WORD_BITS - _FRACTION_BITS)).astype(np.float64)
        return (steps + 0.5) * 2.0**-_FRACTION_BITS

    def normal(self, count: int) -> Floats:
        """Returns ``count`` standard normal numbers (Box and Muller 1958), none beyond 8.6 (which 1e-17 would be).

        They are float64, and finer than the float32 that a release is rounded to; no floating-point normal is exact
        (Mironov 2012). Where exactness counts, use the discrete Gaussian.
        """
        pairs = (count + 1) // 2
        radius = np.sqrt(-2.0 * np.log(self.uniform(pairs)))
        angle = (2.0 * math.pi) * self.uniform(pairs)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def exponential(self, count: int) -> Floats:
        """Returns ``count`` exponential numbers with mean 1."""
        return -np.log(self.uniform(count))

    def signs(self, count: int) -> Floats:
        """Returns ``count`` fair signs, -1.0 or 1.0."""
        return np.where(self.words(count) >> np.uint64(_WORD_BITS - 1), 1.0, -1.0)

    def integer_below(self, bound: int) -> int:
        """Returns an integer of 0 to ``bound`` - 1, each exactly as likely; ``bound`` is any size, at least 1."""
        bits = (bound - 1).bit_length()
        size_bytes = (bits + 7) // 8
        while True:
            drawn = int.from_bytes(os.urandom(size_bytes), "little") >> (8 * size_bytes - bits)
            if drawn < bound:
                return drawn

    def coin(self, numerator: int, denominator: int) -> bool:
        """Returns true with exactly this probability, from 0 to 1."""
        return self.integer_below(denominator) < numerator

    def coins(self, probability: float, count: int) -> Coins:
        """Returns ``count`` independent coins, each true with exactly the probability that the float says.

        A uniform word decides, and where it ties with the probability's first 64 bits, the rest of it does.

        Raises:
            InputError: the probability is not from 0 to 1.
        """
        if not 0 <= probability <= 1:
            raise InputError(f"a coin's probability: expected a number from 0 to 1, got {probability}")
        if probability == 1:
            return np.ones(count, dtype=np.bool_)
        scaled = Fraction(probability) * 2**_WORD_BITS
        threshold = math.floor(scaled)
        words = self.words(count)
        coins: Coins = words < np.uint64(threshold)
        for tie in np.flatnonzero(words == np.uint64(threshold)):
            coins[tie] = self.coin(*(scaled - threshold).as_integer_ratio())
        return coins
