"""Says to the libraries, before they are imported, what the command line says to them in earnest."""

import os

from scaleot_core.cli import LIBRARY_ENVIRONMENT

os.environ.update(LIBRARY_ENVIRONMENT)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads must not spin: the tests share few cores
