import ctypes
import subprocess
import sys

import numpy as np
import psutil
import pytest

from fl_server.memory import peak_memory_bytes, return_freed_memory

GROWN = """
from fl_server.memory import peak_memory_bytes
before = peak_memory_bytes()
held = bytearray(200 << 20)
del held
print(before, peak_memory_bytes())
"""


def test_a_process_started_by_a_large_one_counts_its_own_memory_alone() -> None:
    large = np.ones(600 << 17)  # 600 MiB
    done = subprocess.run([sys.executable, "-c", GROWN], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < 300 << 20 < large.nbytes <= peak_memory_bytes()
    assert (190 << 20) <= after - before < (230 << 20), "the peak stays after the memory was given back"


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_what_was_freed_between_living_blocks_goes_back_to_the_operating_system() -> None:
    blocks = [bytearray(100 << 10) for _ in range(2000)]
    del blocks[1::2], blocks[1::2]
    held = psutil.Process().memory_info().rss
    return_freed_memory()
    assert held - psutil.Process().memory_info().rss > 100 << 20
    assert len(blocks) == 500
