"""The verbs as the installed command has them."""

import importlib.metadata
from importlib.metadata import EntryPoint

from scaleot_core.cli import VERBS_GROUP, run


def verbs() -> tuple[EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=VERBS_GROUP))


def scaleot(*arguments: object) -> int:
    """Runs one command line in this process and returns its exit code."""
    return run([str(argument) for argument in arguments], verbs())
