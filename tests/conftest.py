"""Says to the libraries, before they are imported, what the command line says to them in earnest."""

import os

from scaleot_core.cli import LIBRARY_ENVIRONMENT

os.environ.update(LIBRARY_ENVIRONMENT)
