"""How much memory this process has held."""

import resource
import sys


def peak_memory_bytes() -> int:
    """Returns the most that this process has ever held at once, libraries and weights included, a GPU's excluded."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
