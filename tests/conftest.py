"""Says to the libraries, before they are imported, what the command line says to them in earnest."""

import os
import sys

from scaleot_core.cli import LIBRARY_ENVIRONMENT

os.environ.update(LIBRARY_ENVIRONMENT)


def _compute_in_one_thread() -> None:
    """A forked process has none of its parent's OpenMP threads, and would wait for them for ever."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


os.register_at_fork(after_in_child=_compute_in_one_thread)
