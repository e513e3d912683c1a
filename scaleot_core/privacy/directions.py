"""Public directions for zeroth-order steps: the same bits on every machine, whoever computes them.

Philox (Salmon et al. 2011) turns a key and a counter into random words by integer arithmetic alone. Numpy promises its
words for ever, but not its normal numbers, whose last digit also hangs on the machine's logarithm. So a word's bits
choose from a table of normal quantiles here. A direction is public by design and never a source of noise.
"""

import hashlib
from functools import cache
from statistics import NormalDist
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

AdapterVector: TypeAlias = NDArray[np.float32]
"""An adapter, or a direction to move it in, as one vector: tensors by sorted name, each row by row."""

_QUANTILES: Final = 1 << 16
_GRID: Final = 1 << 16
_NORMALS_PER_WORD: Final = 4
_KEY_WORDS: Final = 2


def direction_key(*labels: str | int) -> int:
    """Returns the 128-bit key of the directions that public ``labels`` name, a run's seed among them.

    The same labels for all clients of a round let the server average scalars; a client's name among them gives every
    client directions of its own.
    """
    text = "\x1f".join(["directions", *map(str, labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[: 8 * _KEY_WORDS], "little")


def direction(key: int, *, step: int, index: int, size: int) -> AdapterVector:
    """Returns the direction ``index`` of a step: ``size`` independent standard normal numbers.

    ``step`` counts through all rounds of a run. Each number is one of 65,536 equally likely ones, the middle
    quantiles of the normal law, scaled to variance 1 and rounded to multiples of 2**-16; none is beyond 4.33. The
    paper (Zhang et al. 2023, algorithm 2) draws from a sphere, its code normal numbers too, and finds no difference.
    """
    words = np.random.Philox(
        key=_words(key, _KEY_WORDS), counter=np.array([0, 0, index, step], dtype=np.uint64)
    ).random_raw(-(-size // _NORMALS_PER_WORD))
    drawn: AdapterVector = _normal_quantiles()[words.astype("<u8").view("<u2")[:size]]
    return drawn


def _words(number: int, count: int) -> NDArray[np.uint64]:
    return np.frombuffer(number.to_bytes(8 * count, "little"), dtype="<u8").astype(np.uint64)


@cache
def _normal_quantiles() -> AdapterVector:
    """Returns the table, ascending and antisymmetric.

    None of its values lies nearer than 2e-11 to where rounding changes, far beyond what mathematical libraries
    differ in; a test holds its digest.
    """
    upper = np.array([NormalDist().inv_cdf((_QUANTILES // 2 + i + 0.5) / _QUANTILES) for i in range(_QUANTILES // 2)])
    rounded = np.rint(upper / np.sqrt(np.mean(upper * upper)) * _GRID) / _GRID
    table: AdapterVector = np.concatenate([-rounded[::-1], rounded]).astype(np.float32)
    table.setflags(write=False)
    return table
