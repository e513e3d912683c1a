"""The verb that both sides ask first when something does not work."""

from pathlib import Path
from typing import Annotated

import typer

from scaleot_core.commands import JsonOption

AnyHome = Annotated[Path | None, typer.Argument(metavar="[HOME]", hidden=True)]


def doctor(home: AnyHome = None, *, as_json: JsonOption = False) -> None:
    """Look for faults of this machine and of a home of either side: one line each, with the cure; exit 2 if any."""
    import importlib.metadata
    import json
    from dataclasses import asdict

    from scaleot_core.doctor import CHECKUPS_GROUP, examine
    from scaleot_core.errors import InputError

    checkups = [entry.load() for entry in importlib.metadata.entry_points(group=CHECKUPS_GROUP)]
    findings = examine(home, checkups)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            typer.echo(f"{'FAULT' if finding.is_fault else 'ok':5}  {finding.name:14} {finding.text}")
    if any(finding.is_fault for finding in findings):
        raise typer.Exit(InputError.exit_code)
