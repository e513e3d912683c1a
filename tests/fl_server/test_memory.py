import subprocess
import sys

import numpy as np

from fl_server.memory import peak_memory_bytes

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
