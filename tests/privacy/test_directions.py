import hashlib

import numpy as np
import pytest
from scipy import stats

from scaleot_core.privacy.directions import direction, direction_key

GOLDEN_KEY = 182867639011103279052129045832812141572
GOLDEN_NUMBERS = [
    -0.855316162109375,
    1.6262664794921875,
    -0.241943359375,
    -0.5447540283203125,
    1.2217254638671875,
    -0.15234375,
]
GOLDEN_DIGEST = "793fb6c3a69d138311ebd562915083ecbaa1e3bf209a5cae9ae5e65e47c5a5fe"


def test_the_words_are_those_of_philox_as_published() -> None:
    """Salmon et al. (2011), the known answers of Random123 for philox4x64-10; numpy counts up before it draws."""
    before_zero = np.full(4, 2**64 - 1, dtype=np.uint64)
    words = np.random.Philox(key=np.zeros(2, dtype=np.uint64), counter=before_zero).random_raw(4)
    assert [hex(int(word)) for word in words] == [
        "0x16554d9eca36314c",
        "0xdb20fe9d672d0fdc",
        "0xd7e772cee186176b",
        "0x7e68b68aec7ba23b",
    ]


def test_a_direction_is_the_same_on_every_machine() -> None:
    key = direction_key("run", 0)
    assert key == GOLDEN_KEY
    assert direction(key, step=3, index=2, size=6).tolist() == GOLDEN_NUMBERS
    assert hashlib.sha256(direction(key, step=0, index=0, size=100_000).tobytes()).hexdigest() == GOLDEN_DIGEST


def test_a_directions_numbers_are_standard_normal() -> None:
    drawn = direction(direction_key("normal"), step=0, index=0, size=200_000).astype(np.float64)
    assert stats.kstest(drawn, "norm").pvalue > 1e-3
    assert abs(drawn.mean()) < 4 / 200_000**0.5
    assert drawn.var() == pytest.approx(1.0, abs=0.015)
    assert np.abs(drawn).max() < 4.33


def test_each_key_step_and_index_has_a_direction_of_its_own() -> None:
    drawn = [
        direction(key, step=step, index=index, size=4000).astype(np.float64)
        for key in (1, 2, 2**64 + 1)
        for step in (0, 1, 2**40)
        for index in (0, 1, 63)
    ]
    correlations = np.corrcoef(drawn) - np.eye(len(drawn))
    assert np.abs(correlations).max() < 6 / 4000**0.5


def test_a_shorter_direction_is_the_beginning_of_a_longer_one() -> None:
    assert np.array_equal(direction(5, step=1, index=0, size=7), direction(5, step=1, index=0, size=1001)[:7])


def test_labels_do_not_run_together() -> None:
    assert direction_key("a", "b") != direction_key("ab")
    assert direction_key("run", 1, "client") != direction_key("run", 1)
    assert 0 <= direction_key("run") < 2**128
