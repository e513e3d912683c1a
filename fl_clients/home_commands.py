"""The verbs that enrol a data owner. Heavy imports stand inside a verb: ``scaleot --help`` loads this."""

from pathlib import Path
from typing import Annotated

import typer

from scaleot_core.commands import FingerprintOption, compare_fingerprint

# Hidden from the list of arguments, as the run file is.
HomeArgument = Annotated[Path, typer.Argument(metavar="HOME", hidden=True)]


def init(
    home: HomeArgument,
    *,
    organisation: Annotated[str, typer.Option("--organisation", metavar="NAME", help="Under which it takes part.")],
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="The private text, JSON lines.")],
) -> None:
    """Make a data owner's HOME: keys, data-owner.toml, and the enrolment request; print the request's fingerprint."""
    from datetime import UTC, datetime

    from fl_clients.data_owner_home import create_data_owner_home
    from fl_clients.own_file_skeleton import skeleton
    from scaleot_core.enrolment.fingerprint import request_fingerprint
    from scaleot_core.training.data import read_records

    own_file = skeleton(organisation, data, records=len(read_records(data)))
    request = create_data_owner_home(home, organisation, own_file=own_file, now=datetime.now(UTC))
    typer.echo(
        f"made {home}, readable by you alone\n"
        "  secret, with no second copy anywhere, so back them up: identity.key, signing.key, node.key, tls.key\n"
        "  yours to read and change: data-owner.toml, the limits of what a server may ask and your privacy budget\n"
        f"next: scaleot budget {home} --create  makes the ledger of that budget\n"
        "      send enrolment.json to the model owner, who will telephone to compare its fingerprint\n"
        f"      scaleot org accept {home} FILE  takes the admission that comes back\n"
        "the fingerprint of enrolment.json, to read out by telephone:",
        err=True,
    )
    typer.echo(request_fingerprint(request))


def accept(
    home: HomeArgument,
    admission: Annotated[Path, typer.Argument(metavar="ADMISSION.json", hidden=True)],
    *,
    fingerprint: FingerprintOption = None,
) -> None:
    """Take the model owner's admission into HOME, after the fingerprint of its key was compared."""
    from datetime import UTC, datetime

    from fl_clients.acceptance import accept as accept_admission
    from fl_clients.acceptance import pinned_owner, read_own_admission
    from fl_clients.data_owner_home import DataOwnerHome
    from scaleot_core.bundle.files import given_file, read_small_file
    from scaleot_core.enrolment.admission import MAX_ADMISSION_BYTES
    from scaleot_core.enrolment.fingerprint import owner_fingerprint

    own = DataOwnerHome(home)
    envelope = read_small_file(admission, MAX_ADMISSION_BYTES)
    with given_file(admission, "the admission that `scaleot org approve` wrote"):
        signed = read_own_admission(own, envelope)
    if fingerprint is not None or pinned_owner(own) != signed.owner:
        compare_fingerprint(fingerprint, owner_fingerprint(signed.owner), of="the model owner's key")
    federation = accept_admission(own, signed, now=datetime.now(UTC))
    typer.echo(
        f"{federation.organisation} takes part in the federation at {federation.fleet}, and fetches from "
        f"{federation.distribution}",
        err=True,
    )
