"""Arguments and options that verbs of both sides share; ``scaleot --help`` loads this module."""

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
