"""The data owner's verbs of a deployed federation. Heavy imports stand inside a verb."""

from pathlib import Path
from typing import Annotated, Literal

import typer

HomeArgument = Annotated[Path, typer.Argument(metavar="DATA_OWNER_HOME", hidden=True)]
PartName = Literal["agent", "node", "trainer"]


def join(
    home: HomeArgument,
    *,
    part: Annotated[
        PartName | None, typer.Option("--part", help="Be this one process only, for systemd and containers.")
    ] = None,
) -> None:
    """Take part in a federation until stopped: fetch the emulator, then train as asked, if the own policy allows."""
    from fl_clients.join import join as run_all
    from fl_clients.join import join_part
    from scaleot_core.progress import terminal_or_log_reporter

    if part is not None:
        join_part(home, part)
        return
    status = run_all(home, terminal_or_log_reporter())
    if status:
        raise typer.Exit(status)
