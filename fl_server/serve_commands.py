"""The model owner's verbs of a deployed federation. Heavy imports stand inside a verb."""

from pathlib import Path
from typing import Annotated, Literal

import typer

HomeArgument = Annotated[Path, typer.Argument(metavar="OWNER_HOME", hidden=True)]
PartName = Literal["superlink", "distribution", "edge", "server-app", "rounds"]


def serve(
    home: HomeArgument,
    *,
    part: Annotated[
        PartName | None, typer.Option("--part", help="Be this one process only, for systemd and containers.")
    ] = None,
) -> None:
    """Run a federation's server until its rounds are done: everything that data owners connect to, supervised."""
    from fl_server.serve import serve as run_all
    from fl_server.serve import serve_part
    from scaleot_core.progress import terminal_or_log_reporter

    if part is not None:
        serve_part(home, part)
        return
    status = run_all(home, terminal_or_log_reporter())
    if status:
        raise typer.Exit(status)
