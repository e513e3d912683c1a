"""How the newest emulator comes into a data owner's home: manifest, bundle, grant, and only then the name ``current``.

::

    HOME/bundles/<digest>/   the sealed bundle, as ``fetch`` brings it; nothing of it is decrypted
    HOME/bundles/current     a link to the one in use, changed at once when a newer one is whole
    HOME/grant.json          the grant of that one, mode 0600
"""

import shutil
from datetime import datetime
from pathlib import Path
from secrets import token_hex

from fl_clients.fetch import FetchedBundle, fetch_bundle
from fl_clients.patient_source import PatientSource
from fl_clients.repository import newest_manifest
from fl_clients.sources import Source
from scaleot_core.bundle import VerifyingKey, load_verifying_key
from scaleot_core.bundle.files import replace_file, sync_directory
from scaleot_core.bundle.grant import MAX_GRANT_BYTES, check_grant
from scaleot_core.bundle.manifest import OuterManifest
from scaleot_core.errors import FetchError, NotServedError, OutputError
from scaleot_core.progress import Reporter

BUNDLES_DIRECTORY, CURRENT, GRANT_FILE, OWNER_KEY_FILE = "bundles", "current", "grant.json", "owner.pub"


def receive(
    source: Source, home: Path, *, organisation: str, now: datetime, deadline_seconds: float, reporter: Reporter
) -> FetchedBundle:
    """Brings the newest sealed emulator and the grant for it into a data owner's home; goes on where it was stopped.

    A folder or a static server has no grants: then the file that the model owner handed over has to lie in the home.
    Bundles before this one are removed once it is in use. ``now`` carries a time zone.

    Raises:
        VerificationError: manifest, repository, objects or grant are not what the owner signed for this organisation.
        FetchError: the source refuses or gives nothing within the deadline, or there is no grant.
        InputError: the home lacks the owner's key or the pinned root, or another process is fetching.
        OutputError: the home cannot be written, or has not enough room.
    """
    owner = load_verifying_key(home / OWNER_KEY_FILE)
    patient = PatientSource(source, deadline_seconds=deadline_seconds)
    newest = newest_manifest(patient, home, owner=owner, now=now)
    bundles = home / BUNDLES_DIRECTORY
    fetched = fetch_bundle(patient, bundles, newest.envelope, newest.signed, reporter=reporter)
    try:
        _receive_grant(patient, home, fetched.digest, newest.signed.manifest, owner, organisation=organisation, now=now)
        _make_current(bundles, fetched.digest)
    except OSError as error:
        raise OutputError(f"{home} cannot be written: {error.strerror or error}") from error
    return fetched


def _receive_grant(
    source: PatientSource,
    home: Path,
    digest: str,
    manifest: OuterManifest,
    owner: VerifyingKey,
    *,
    organisation: str,
    now: datetime,
) -> None:
    path = home / GRANT_FILE
    try:
        grant = source.grant(digest)
    except NotServedError as error:
        grant = _grant_at_hand(path, digest, error)
    check_grant(grant, manifest, owner, organisation=organisation, now=now)
    replace_file(path, grant, mode=0o600)


def _grant_at_hand(path: Path, digest: str, refusal: NotServedError) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_GRANT_BYTES + 1)
    except FileNotFoundError as error:
        raise FetchError(
            f"there is no grant for bundle {digest}: {refusal}. Ask the model owner for one and put it at {path}"
        ) from error


def _make_current(bundles: Path, digest: str) -> None:
    """Changes the link at once, and then removes bundles that are no longer in use."""
    link = bundles / CURRENT
    if not link.is_symlink() or link.readlink() != Path(digest):
        building = bundles / f".{CURRENT}.{token_hex(8)}.partial"
        building.symlink_to(digest, target_is_directory=True)
        building.replace(link)
        sync_directory(bundles)
    for other in bundles.iterdir():
        if other.name not in (CURRENT, digest, f"{digest}.lock"):
            shutil.rmtree(other) if other.is_dir() and not other.is_symlink() else other.unlink()
