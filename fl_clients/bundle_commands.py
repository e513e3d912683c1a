"""Anyone's verbs for sealed bundles. Heavy imports stand inside a verb: ``scaleot --help`` loads this module."""

from pathlib import Path
from typing import Annotated

import typer

from scaleot_core.commands import JsonOption

# Hidden from the list of arguments, as the run file is.
BundleArgument = Annotated[Path, typer.Argument(metavar="PATH", hidden=True)]
RootOption = Annotated[
    Path | None, typer.Option("--root", metavar="FILE", help="Of a repository: the pinned root, not its own first one.")
]


def verify(
    path: BundleArgument,
    *,
    owner_public_key: Annotated[
        Path, typer.Option("--owner-public-key", metavar="FILE", help="The owner's owner.pub.")
    ],
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify every byte of a sealed bundle or of a repository; exit code 3 names the check that failed."""
    import json
    from datetime import UTC, datetime

    from fl_clients.verification import verify_path
    from scaleot_core.bundle import load_verifying_key

    found = verify_path(path, load_verifying_key(owner_public_key), pinned_root=root, now=datetime.now(UTC))
    typer.echo(json.dumps(found.to_json(), indent=2) if as_json else found.sentence())


def inspect(
    path: BundleArgument,
    *,
    owner_public_key: Annotated[
        Path | None, typer.Option("--owner-public-key", metavar="FILE", help="Verify it first; --grant needs it.")
    ] = None,
    grant: Annotated[Path | None, typer.Option("--grant", metavar="FILE", help="Show what is inside, too.")] = None,
    identity_key: Annotated[
        Path | None, typer.Option("--identity-key", metavar="FILE", help="Opens the grant.")
    ] = None,
    organisation: Annotated[str | None, typer.Option("--organisation", metavar="NAME", help="Of the grant.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a sealed bundle, or a repository's newest one, says of itself; with a grant, what is inside."""
    import json
    from datetime import UTC, datetime

    from rich.console import Console

    from fl_clients.bundle_table import print_inspection
    from fl_clients.verification import GrantFiles, inspect_path
    from scaleot_core.bundle import load_verifying_key
    from scaleot_core.errors import InputError

    owner = None if owner_public_key is None else load_verifying_key(owner_public_key)
    files = None
    if grant is not None:
        if owner is None or identity_key is None or organisation is None:
            raise InputError("--grant: expected --owner-public-key, --identity-key and --organisation beside it")
        files = GrantFiles(grant, identity_key, organisation)
    found = inspect_path(path, owner, files, now=datetime.now(UTC))
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        print_inspection(found, Console())
