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


def fetch(
    home: HomeArgument,
    *,
    source: Annotated[
        str, typer.Option("--from", metavar="PLACE", help="A copy of the owner's repository: a folder, or https://...")
    ],
    authority: Annotated[
        Path | None, typer.Option("--authority", metavar="FILE", help="PEM certificates to trust for https.")
    ] = None,
) -> None:
    """Bring the newest sealed emulator from a stick, a share or a web server: what join then need not download.

    Its grant, which such a place has not, is the one in DATA_OWNER_HOME/grant.json.
    """
    from datetime import UTC, datetime

    from fl_clients.agent import FETCH_SECONDS
    from fl_clients.policy import read_data_owner_file
    from fl_clients.receive import receive
    from fl_clients.sources import FolderSource, HttpsSource
    from scaleot_core.errors import InputError
    from scaleot_core.progress import terminal_or_log_reporter

    is_url = "://" in source
    if not is_url and not Path(source).is_dir():
        raise InputError(f"--from {source}: expected a folder, or a URL such as https://host/repository")
    fetched = receive(
        HttpsSource(source, authority=authority) if is_url else FolderSource(Path(source)),
        home,
        organisation=read_data_owner_file(home).organisation,
        now=datetime.now(UTC),
        deadline_seconds=FETCH_SECONDS,
        reporter=terminal_or_log_reporter(),
    )
    typer.echo(f"version {fetched.version}, bundle {fetched.digest}: {fetched.moved_bytes / 1e6:.1f} MB came")
