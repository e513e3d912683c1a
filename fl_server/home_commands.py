"""The verbs of a model owner's home. Heavy imports stand inside a verb: ``scaleot --help`` loads this."""

from pathlib import Path
from typing import Annotated

import typer

from scaleot_core.commands import FingerprintOption, JsonOption, compare_fingerprint

# Hidden from the list of arguments, as the run file is.
HomeArgument = Annotated[Path, typer.Argument(metavar="HOME", hidden=True)]
HostOption = Annotated[
    list[str], typer.Option("--host", metavar="NAME", help="Name or address of the services; repeatable.")
]
DistributionOption = Annotated[
    str, typer.Option("--distribution", metavar="HOST:PORT", help="Where members fetch the sealed emulator.")
]
FleetOption = Annotated[str, typer.Option("--fleet", metavar="HOST:PORT", help="Where members' SuperNodes connect.")]
AdmissionOption = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="The admission; NAME.admission.json by default.")
]


def keygen(home: HomeArgument, host: HostOption = []) -> None:  # noqa: B006 - typer copies it
    """Make a model owner's HOME: signing key, authority, empty registry and audit log; print the key's fingerprint."""
    from datetime import UTC, datetime

    from fl_server.authority import hosts_of, read_certificate
    from fl_server.owner_home import OwnerHome, create_owner_home
    from scaleot_core.enrolment.fingerprint import owner_fingerprint

    public = create_owner_home(home, host, now=datetime.now(UTC))
    server = read_certificate(OwnerHome(home).server_tls.certificate)
    typer.echo(
        f"made {home}, readable by you alone\n"
        "  secret, with no second copy anywhere, so back them up offline: owner.key, keys/, authority/*.key\n"
        "  grow with every decision, back them up with the rest: organisations.jsonl, audit.jsonl, their .head.json\n"
        "  public: owner.pub, authority/*.pem, repository/\n"
        f"  the server's certificate is for {', '.join(hosts_of(server))} until {server.not_valid_after_utc:%Y-%m-%d}\n"
        f"next: write {home}/owner.toml, your run file; scaleot seal {home}/owner.toml --home {home},\n"
        f"      scaleot publish {home}, and for every organisation\n"
        f"      scaleot org approve {home} enrolment.json --distribution HOST:PORT --fleet HOST:PORT\n"
        "the fingerprint of owner.pub, to read out to every organisation by telephone:",
        err=True,
    )
    typer.echo(owner_fingerprint(public))


def renew_authority(home: HomeArgument, host: HostOption = []) -> None:  # noqa: B006 - typer copies it
    """Issue the server of HOME another certificate for 90 days, for the same hosts or the given ones."""
    from datetime import UTC, datetime

    from fl_server.authority import hosts_of, renew_server
    from fl_server.owner_home import OwnerHome

    certificate = renew_server(OwnerHome(home).authority, host, now=datetime.now(UTC))
    typer.echo(f"{', '.join(hosts_of(certificate))} until {certificate.not_valid_after_utc:%Y-%m-%d}")


def approve(
    home: HomeArgument,
    request: Annotated[Path, typer.Argument(metavar="ENROLMENT.json", hidden=True)],
    *,
    distribution: DistributionOption,
    fleet: FleetOption,
    fingerprint: FingerprintOption = None,
    max_examples: Annotated[
        int, typer.Option("--max-examples", min=1, help="Most that its update weighs.")
    ] = 1_000_000,
    out: AdmissionOption = None,
) -> None:
    """Make the organisation of ENROLMENT.json a member, after its fingerprint was compared; write its admission."""
    from datetime import UTC, datetime

    from fl_server.enrolment import Addresses, check_addresses
    from fl_server.enrolment import approve as approve_applicant
    from fl_server.owner_home import OwnerHome
    from scaleot_core.bundle.files import given_file, read_small_file
    from scaleot_core.enrolment.fingerprint import request_fingerprint
    from scaleot_core.enrolment.request import MAX_REQUEST_BYTES, read_request

    envelope = read_small_file(request, MAX_REQUEST_BYTES)
    with given_file(request, "the enrolment.json that `scaleot org init` wrote"):
        applicant = read_request(envelope)
    destination, addresses = _new_file(out, applicant.organisation), Addresses(distribution, fleet)
    check_addresses(OwnerHome(home), addresses)
    compare_fingerprint(fingerprint, request_fingerprint(envelope), of=f"the request of {applicant.organisation}")
    admission = approve_applicant(
        OwnerHome(home),
        applicant,
        addresses,
        max_examples=max_examples,
        now=datetime.now(UTC),
    )
    _write_admission(home, destination, admission, applicant.organisation)


def renew(
    home: HomeArgument,
    organisation: Annotated[str, typer.Argument(metavar="NAME", hidden=True)],
    *,
    distribution: DistributionOption,
    fleet: FleetOption,
    out: AdmissionOption = None,
) -> None:
    """Issue member NAME another certificate for 90 days, and write a new admission that brings it."""
    from datetime import UTC, datetime

    from fl_server.enrolment import Addresses
    from fl_server.enrolment import renew as renew_member
    from fl_server.owner_home import OwnerHome

    destination = _new_file(out, organisation)
    admission = renew_member(OwnerHome(home), organisation, Addresses(distribution, fleet), now=datetime.now(UTC))
    _write_admission(home, destination, admission, organisation)


def revoke(
    home: HomeArgument,
    organisation: Annotated[str, typer.Argument(metavar="NAME", hidden=True)],
    *,
    from_round: Annotated[int, typer.Option("--from-round", metavar="R", min=0, help="First round it is out of.")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="For registry and audit log.")],
) -> None:
    """End the membership of NAME for good: no download from now on, no update from round R on."""
    from datetime import UTC, datetime

    from fl_server.enrolment import revoke as revoke_member
    from fl_server.owner_home import OwnerHome

    revoke_member(OwnerHome(home), organisation, from_round=from_round, reason=reason, now=datetime.now(UTC))
    typer.echo(
        f"{organisation} is revoked from round {from_round} on. It keeps what it has opened; seal and publish another "
        "version, with another data key, for what it shall not see",
        err=True,
    )


def reinstate(home: HomeArgument, organisation: Annotated[str, typer.Argument(metavar="NAME", hidden=True)]) -> None:
    """Ask NAME again in the rounds of HOME, after refusals that suspended it."""
    from datetime import UTC, datetime

    from fl_server.audit_log import AuditLog
    from fl_server.owner_home import OwnerHome
    from fl_server.suspension import reinstate as lift_suspension

    lift_suspension(OwnerHome(home).run, organisation)
    log = AuditLog(OwnerHome(home).audit_log)
    log.append("organisation.reinstated", {"organisation": organisation}, now=datetime.now(UTC))
    typer.echo(f"{organisation} is asked again from the next round on", err=True)


def list_organisations(home: HomeArgument, *, as_json: JsonOption = False) -> None:
    """Show every organisation of HOME: status, since when, until when its certificate is valid."""
    import json

    from rich.console import Console

    from fl_server.organisation_table import members_to_json, print_members
    from fl_server.owner_home import OwnerHome
    from fl_server.registry import Registry

    registry = Registry(OwnerHome(home).registry)
    if as_json:
        typer.echo(json.dumps(members_to_json(registry), indent=2))
    else:
        print_members(registry.members(), Console())


def sign_audit_head(home: HomeArgument) -> None:
    """Print the signed head of HOME's audit log, for members to keep and compare."""
    from datetime import UTC, datetime

    from fl_server.audit_log import AuditLog
    from fl_server.owner_home import OwnerHome
    from scaleot_core.bundle.key_files import load_signing_key

    log = AuditLog(OwnerHome(home).audit_log)
    typer.echo(log.signed_head(load_signing_key(OwnerHome(home).owner_key), now=datetime.now(UTC)))


def verify_audit_log(
    file: Annotated[Path, typer.Argument(metavar="FILE", hidden=True)],
    *,
    heads: Annotated[
        list[Path], typer.Option("--head", metavar="FILE", help="A signed head the log must extend; repeatable.")
    ] = [],  # noqa: B006 - typer copies it
    owner_public_key: Annotated[
        Path | None, typer.Option("--owner-public-key", metavar="FILE", help="Whose log it must be, owner.pub.")
    ] = None,
) -> None:
    """Verify an audit log offline, line by line and against signed heads; print its last line's number and SHA-256."""
    from fl_server.audit_log import verify_copy

    head = verify_copy(file, heads, owner_public_key)
    typer.echo(f"{head.number} {head.sha256}")


def _new_file(out: Path | None, organisation: str) -> Path:
    """Returns where an admission goes: asked before anything is decided, since what is decided must get there."""
    import os

    from scaleot_core.errors import OutputError

    destination = out or Path(f"{organisation}.admission.json")
    if destination.exists():
        raise OutputError(f"{destination} exists already; remove it first or give another name with --out")
    place = destination.absolute().parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"{destination} cannot be written: expected {place} to be a directory of yours")
    return destination


def _write_admission(home: Path, destination: Path, admission: bytes, organisation: str) -> None:
    from fl_server.owner_home import OwnerHome
    from scaleot_core.bundle.files import write_new_file
    from scaleot_core.bundle.key_files import load_verifying_key
    from scaleot_core.enrolment.fingerprint import owner_fingerprint

    write_new_file(destination, admission, mode=0o644)
    typer.echo(
        f"send {destination} to {organisation} by any way: only {organisation} can open it. By telephone, read out the "
        f"fingerprint of your own key:\n  {owner_fingerprint(load_verifying_key(OwnerHome(home).owner_public_key))}",
        err=True,
    )
    typer.echo(destination)
