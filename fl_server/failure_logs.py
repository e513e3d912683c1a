"""Why simulated clients failed, in their own words.

A data owner's log stays with it. In a simulation the data owners are the researcher's own, and their directories vanish
with the run.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scaleot_core.errors import RoundFailedError

FAILURE_LOG = "failure.log"
"""Named as the client names it; the model owner's side never imports the data owner's."""
_LINES = 12
"""Of each log: the innermost frames of a traceback, and the error."""


@contextmanager
def explained_failures(data_owner_directories: Sequence[Path]) -> Iterator[None]:
    """Adds the end of the clients' logs to the error of a round that failed inside.

    Raises:
        RoundFailedError: the same, with the logs.
    """
    try:
        yield
    except RoundFailedError as error:
        raise RoundFailedError("\n".join((str(error), *_ends(data_owner_directories)))) from error


def _ends(directories: Sequence[Path]) -> list[str]:
    """Returns the end of each log under its path's name; a failure that several clients share stands once."""
    ends: dict[str, str] = {}
    for directory in directories:
        path = directory / FAILURE_LOG
        if path.is_file():
            lines = path.read_text(encoding="utf-8").strip().splitlines()
            ends.setdefault(lines[-1], f"the log of client {directory.name} ends:\n" + "\n".join(lines[-_LINES:]))
    return list(ends.values())
