"""Arguments and options that verbs of both sides share; ``scaleot --help`` loads this module."""

from pathlib import Path
from typing import Annotated

import typer

from scaleot_core.errors import VerificationError

# Hidden from the list of arguments: the usage line shows it.
RunFileArgument = Annotated[Path, typer.Argument(metavar="FILE.toml", hidden=True)]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="SECTION.KEY=VALUE", help="Change one key of the run file; repeatable.", show_default=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
FingerprintOption = Annotated[
    str | None, typer.Option("--fingerprint", metavar="DIGITS", help="As the other side reads it out by telephone.")
]


def compare_fingerprint(given: str | None, expected: str, *, of: str) -> None:
    """Compares a fingerprint with the digits that were given, or shows it and asks whoever sits at the terminal.

    Raises:
        VerificationError: it is another.
    """
    from scaleot_core.enrolment.fingerprint import check_fingerprint

    if given is not None:
        check_fingerprint(given, expected, of=of)
        return
    typer.echo(f"The fingerprint of {of} is\n  {expected}", err=True)
    if not typer.confirm("Has the other side read out exactly these digits by telephone?", err=True):
        raise VerificationError(
            "fingerprint.other", f"the fingerprint of {of} is not the other side's; nothing was done"
        )
