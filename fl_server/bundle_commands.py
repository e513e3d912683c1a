"""The model owner's verbs for sealed emulators. Heavy imports stand inside a verb: ``scaleot --help`` loads this."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaleot_core.commands import JsonOption, RunFileArgument, SetOption

if TYPE_CHECKING:
    from fl_server.repository_state import Expiries

HomeOption = Annotated[Path, typer.Option("--home", metavar="HOME", help="The model owner's, made by scaleot keygen.")]
HomeArgument = Annotated[Path, typer.Argument(metavar="HOME", hidden=True)]


def seal(
    file: RunFileArgument,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    *,
    home: HomeOption,
    version: Annotated[int | None, typer.Option("--version", min=1, help="Default: one above the newest.")] = None,
    days: Annotated[int, typer.Option("--days", min=1, max=3650, help="Until when it can be opened.")] = 90,
    as_json: JsonOption = False,
) -> None:
    """Compress the run file's model and seal the emulator into HOME as its next version, encrypted and signed."""
    import json
    from datetime import timedelta

    from fl_server.owner_home import OwnerHome
    from fl_server.sealing import seal_version
    from scaleot_core.bundle import load_signing_key
    from scaleot_core.config import read_run_file
    from scaleot_core.progress import terminal_or_log_reporter

    owner, run = load_signing_key(OwnerHome(home).owner_key), read_run_file(file, overrides)
    sealed = seal_version(
        run, home, owner=owner, version=version, lifetime=timedelta(days=days), reporter=terminal_or_log_reporter()
    )
    record = sealed.record.model_dump(mode="json")
    if as_json:
        typer.echo(json.dumps(record, indent=2, allow_nan=False))
        return
    emulator = sealed.record.emulator
    typer.echo(
        f"version {sealed.version}, bundle {sealed.bundle.digest}\n"
        f"{sealed.bundle.size_bytes / 1e6:.1f} MB to download, can be opened until {sealed.record.not_after}\n"
        f"of the full model: {emulator.size_share:.1%} of its parameters, {emulator.verbatim_share:.1%} unchanged"
    )
    typer.echo(f"next: scaleot publish {home}", err=True)


def publish(
    home: HomeArgument,
    *,
    version: Annotated[int | None, typer.Option("--version", min=1, help="Default: the newest sealed one.")] = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Then bring this copy up to date.")] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Only say for another day what is the newest.")] = False,
    rotate: Annotated[str | None, typer.Option("--rotate", metavar="ROLE", help="Only replace a role's keys.")] = None,
    keep: Annotated[
        int | None, typer.Option("--keep", min=1, metavar="N", help="Then remove all but the N newest versions.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Publish the newest sealed emulator of HOME in its repository, and grant it to every active member."""
    from datetime import UTC, datetime

    from fl_server.grants import GRANTS_DIRECTORY
    from fl_server.owner_home import OwnerHome
    from fl_server.pruning import prune_copy
    from fl_server.publishing import prune_on_record, publish_to_members, rotate_on_record
    from fl_server.repository import refresh_repository
    from fl_server.repository_files import copy_repository
    from fl_server.repository_state import REPOSITORY_DIRECTORY
    from scaleot_core.bundle.repository import Role
    from scaleot_core.errors import InputError

    if sum((version is not None, refresh, rotate is not None)) > 1:
        raise InputError("--version, --refresh and --rotate each ask for something of their own: give one")
    if rotate is not None and rotate not in list(Role):
        raise InputError(f"--rotate: expected one of {', '.join(Role)}, got {rotate}")
    owner_home, now = OwnerHome(home), datetime.now(UTC)
    said: dict[str, Any] = {}
    if refresh:
        expiries = refresh_repository(home, now=now)
    elif rotate is not None:
        expiries = rotate_on_record(owner_home, Role(rotate), now=now)
    else:
        made = publish_to_members(owner_home, version, now=now)
        expiries = made.expiries
        said = {"version": made.version, "digest": made.digest, "members": list(made.members)}
    if keep is not None:
        said["removed"] = list(prune_on_record(owner_home, keep, now=now))
    if to is not None:
        copy_repository(home / REPOSITORY_DIRECTORY, to)
        if keep is not None:
            prune_copy(home / REPOSITORY_DIRECTORY, to)
    _say_what_is_published(said, expiries, as_json=as_json)
    if "version" in said:
        typer.echo(f"grants for organisations that run scaleot fetch: {home / GRANTS_DIRECTORY}", err=True)


def _say_what_is_published(said: dict[str, Any], expiries: "Expiries", *, as_json: bool) -> None:
    import json
    from dataclasses import asdict

    ends = {role: None if end is None else end.isoformat() for role, end in asdict(expiries).items()}
    if as_json:
        typer.echo(json.dumps({**said, "expires": ends}, indent=2))
        return
    if "version" in said:
        typer.echo(f"version {said['version']} is published, bundle {said['digest']}")
        typer.echo(f"granted to {', '.join(said['members']) or 'nobody yet'}")
    if "removed" in said:
        typer.echo(f"versions removed: {', '.join(map(str, said['removed'])) or 'none'}")
    for role, end in ends.items():
        typer.echo(f"{role} metadata is accepted until {end}" if end else f"{role} metadata: nothing is published yet")
