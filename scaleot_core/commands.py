"""The verbs for everybody. Heavy imports stand inside a verb: ``scaleot --help`` loads this module."""

from pathlib import Path
from typing import Annotated

import typer

# Hidden from the list of arguments, where typer prints "\[required]" without rich; the usage line shows it.
RunFileArgument = Annotated[Path, typer.Argument(metavar="FILE.toml", hidden=True)]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="SECTION.KEY=VALUE", help="Change one key of the run file; repeatable.", show_default=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def check(file: RunFileArgument, overrides: SetOption = [], *, as_json: JsonOption = False) -> None:  # noqa: B006 - typer copies it
    """Show a run file as it is understood, every default filled in, or all its faults."""
    from scaleot_core.config import read_run_file, to_toml

    run = read_run_file(file, overrides)
    typer.echo(run.model_dump_json(indent=2) if as_json else to_toml(run), nl=as_json)
