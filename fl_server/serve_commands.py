"""The model owner's verbs of a deployed federation. Heavy imports stand inside a verb."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from scaleot_core.commands import JsonOption

HomeArgument = Annotated[Path, typer.Argument(metavar="OWNER_HOME", hidden=True)]
PartName = Literal["superlink", "distribution", "edge", "server-app", "rounds"]


def serve(
    home: HomeArgument,
    *,
    part: Annotated[
        PartName | None, typer.Option("--part", help="Be this one process only, for systemd and containers.")
    ] = None,
    new_run: Annotated[
        bool, typer.Option("--new-run", help="Begin a run with the newest emulator; the old one is set aside.")
    ] = False,
) -> None:
    """Run a federation's server until its rounds are done: everything that data owners connect to, supervised."""
    from fl_server.serve import serve as run_all
    from fl_server.serve import serve_part
    from scaleot_core.progress import terminal_or_log_reporter

    if part is not None:
        serve_part(home, part)
        return
    status = run_all(home, terminal_or_log_reporter(), is_new_run=new_run)
    if status:
        raise typer.Exit(status)


def plug_in(
    home: HomeArgument,
    *,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the tuned adapter goes.")] = None,
    no_attacks: Annotated[
        bool, typer.Option("--no-attacks", help="Leave the emulator unattacked: less memory and time.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Plug what a federation has reached into the full model and measure it; default output: OWNER_HOME/tuned."""
    from fl_server.output import new_output, show_report
    from scaleot_core.errors import InputError
    from scaleot_core.progress import terminal_or_log_reporter

    if not (home / "run").is_dir():
        raise InputError(f"{home} has no run: expected a model owner's home in which scaleot serve has run")
    destination = out or home / "tuned"
    with new_output(destination) as directory:
        from fl_server.plugging import plug_in as run_plug_in

        report = run_plug_in(home, directory, terminal_or_log_reporter(), attacks=not no_attacks)
    show_report(report, destination, as_json=as_json)


def status(
    home: HomeArgument,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every two seconds, until interrupted.")] = False,
    page: Annotated[
        int | None, typer.Option("--page", metavar="PORT", min=1, max=65_535, help="Serve it as a page on loopback.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show who is enrolled, online and training, the rounds' losses, and whom the round waits for and why."""
    import time
    from datetime import UTC, datetime

    from rich.console import Console
    from rich.live import Live

    from fl_server.federation_status import read_federation_status, to_json
    from fl_server.status_table import print_status, status_view

    if page is not None:
        from fl_server.status_page import serve_page

        typer.echo(f"http://127.0.0.1:{page}/", err=True)
        serve_page(home, page)
        return
    found = read_federation_status(home, now=datetime.now(UTC))
    if as_json:
        typer.echo(to_json(found))
    elif not watch:
        print_status(found, Console())
    else:
        with Live(status_view(found), refresh_per_second=2) as live:
            while True:
                time.sleep(2.0)
                live.update(status_view(read_federation_status(home, now=datetime.now(UTC))))
