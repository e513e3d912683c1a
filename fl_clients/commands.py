"""The data owner's verbs. Heavy imports stand inside a verb: ``scaleot --help`` loads this module."""

from pathlib import Path
from typing import Annotated

import typer

from scaleot_core.commands import JsonOption

# Hidden from the list of arguments, as the run file is.
DataOwnerArgument = Annotated[Path, typer.Argument(metavar="DIRECTORY", hidden=True)]
CreateOption = Annotated[bool, typer.Option("--create", help="First make the ledger, once for a data set.")]


def budget(directory: DataOwnerArgument, *, create: CreateOption = False, as_json: JsonOption = False) -> None:
    """Show a data owner's privacy budget: spent, left, rounds that fit, each release. DIRECTORY has data-owner.toml."""
    import json
    from datetime import UTC, datetime

    from rich.console import Console

    from fl_clients.budget_table import print_budget
    from fl_clients.own_ledger import (
        create_own_ledger,
        declared_number_warnings,
        own_privacy,
        scope_of_ledger,
        summarise_own_ledger,
    )
    from fl_clients.policy import read_data_owner_file

    own = read_data_owner_file(directory)
    if create:
        create_own_ledger(own, now=datetime.now(UTC))
    summary = summarise_own_ledger(own)
    warnings = [*summary.warnings, *declared_number_warnings(own_privacy(own), summary.terms.data_set.records)]
    for warning in warnings:
        typer.echo(warning, err=True)
    if as_json:
        found = {"warnings": warnings, **scope_of_ledger(summary).to_json(), **summary.to_json()}
        typer.echo(json.dumps(found, indent=2, allow_nan=False))
    else:
        print_budget(summary, Console())
