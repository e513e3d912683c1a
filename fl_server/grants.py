"""The grants of a published emulator: one for each organisation, delivered to that organisation alone.

``grants/<bundle digest>/<organisation>.grant.json`` in the model owner's home, mode 0600. They never lie in the
repository, which therefore shows nobody who takes part. Who is no longer a member has none: its file is removed, the
service refuses it, and the next version has another data key.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from fl_server.registry import Registry, Status
from fl_server.repository_state import published_version
from fl_server.sealed_versions import SealedVersion, read_sealed
from scaleot_core.bundle import Recipient, SigningKey, issue_grant, load_signing_key
from scaleot_core.bundle.files import replace_file
from scaleot_core.enrolment.transport_keys import MEMBER_NAME
from scaleot_core.errors import InputError, OutputError

GRANTS_DIRECTORY, SUFFIX = "grants", ".grant.json"


def issue_grants(home: Path, recipients: Mapping[str, Recipient]) -> dict[str, Path]:
    """Grants the published emulator to these organisations and to no others, and returns where each grant lies.

    A grant ends with its bundle. Each is made anew, since its recipient may have another key by now; what an
    organisation has already stays good. Grants of earlier emulators are removed.

    Raises:
        InputError: nothing is published, its sealed version is not in the home, or a name cannot be a member's.
        OutputError: the home cannot be written.
    """
    for name in recipients:
        if not re.fullmatch(MEMBER_NAME, name):
            raise InputError(f"organisation {name[:80]!r}: expected 1 to 64 of A-Z a-z 0-9 . _ -, not a mark first")
    sealed = read_sealed(home, published_version(home))
    owner = load_signing_key(home / "owner.key")
    directory = home / GRANTS_DIRECTORY / sealed.bundle.digest
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        places = {name: directory / f"{name}{SUFFIX}" for name in recipients}
        for grant in set(directory.iterdir()) - set(places.values()):
            grant.unlink()
        for name, place in places.items():
            replace_file(place, _grant(sealed, owner, name, recipients[name]), mode=0o600)
        for other in directory.parent.iterdir():
            if other != directory:
                shutil.rmtree(other)
    except OSError as error:
        raise OutputError(f"{directory} cannot be written: {error.strerror or error}") from error
    return places


def grant_to_members(home: Path, registry: Registry) -> None:
    """Grants the published emulator to every active organisation that has no grant yet, and takes it from the others.

    Raises:
        InputError: nothing is published, or the owner's key cannot be read.
    """
    active = {member.name: member.recipient for member in registry.members() if member.status is Status.ACTIVE}
    if set(active) != {name for name, _ in grant_files(home)}:
        issue_grants(home, active)


def grant_files(home: Path) -> dict[tuple[str, str], bytes]:
    """Returns every grant in a home, by organisation and bundle digest; raises ``OSError``."""
    places = (home / GRANTS_DIRECTORY).glob(f"*/*{SUFFIX}")
    return {(place.name.removesuffix(SUFFIX), place.parent.name): place.read_bytes() for place in places}


def _grant(sealed: SealedVersion, owner: SigningKey, organisation: str, recipient: Recipient) -> bytes:
    return issue_grant(
        sealed.bundle,
        owner=owner,
        organisation=organisation,
        recipient=recipient,
        not_after=sealed.record.not_after,
    )
