"""Keeps the newest sealed emulator in the data owner's home: ciphertext, fetched over gRPC, verified block by block."""

import time
from datetime import UTC, datetime

from fl_clients.fetch import fetch_bundle
from fl_clients.grpc_source import grpc_source
from fl_clients.membership import Membership
from scaleot_core.bundle.key_files import load_verifying_key
from scaleot_core.errors import FetchError
from scaleot_core.progress import Reporter

LOOK_SECONDS = 60.0
"""Between two looks for a newer version."""
FETCH_SECONDS = 24 * 3600.0
"""A fetch has a day; what came of it is kept anyway."""


def fetch_newest(membership: Membership, reporter: Reporter) -> None:
    """Fetches the newest version, unless it is there, and makes it the one that rounds use.

    Raises:
        VerificationError, FetchError, OutputError, InputError: as ``fetch_bundle``.
    """
    own = membership.own
    bundles = membership.home / "bundles"
    with grpc_source(str(membership.distribution), membership.tls) as source:
        fetched = fetch_bundle(
            source,
            bundles,
            owner=load_verifying_key(own.owner_public_key),
            now=datetime.now(UTC),
            deadline_seconds=FETCH_SECONDS,
            reporter=reporter,
        )
    reporter.note(f"emulator version {fetched.version} is here: {fetched.size_bytes / 1e6:.1f} MB, {fetched.digest}")
    temporary = bundles / ".current"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(fetched.digest)
    temporary.replace(bundles / "current")


def keep_fetching(membership: Membership, reporter: Reporter) -> None:
    """Looks for a newer version for ever; a server that cannot be reached is asked again later."""
    while True:
        time.sleep(LOOK_SECONDS)
        try:
            fetch_newest(membership, reporter)
        except FetchError as error:
            reporter.note(f"no newer emulator now: {error}")
