"""A data owner's one part that talks to the distribution service.

It keeps the newest sealed emulator and the grant for it in the home, ciphertext, and tells how far training is.
"""

import time
from datetime import UTC, datetime

from fl_clients.grpc_source import grpc_source
from fl_clients.membership import Membership
from fl_clients.policy import may_tell_steps
from fl_clients.receive import receive
from fl_clients.training_step import tell_steps
from scaleot_core.bundle.distribution import TrainingRequest
from scaleot_core.errors import FetchError, VerificationError
from scaleot_core.progress import Reporter

LOOK_SECONDS = 60.0
"""Between two looks for a newer version."""
RETRY_SECONDS = 10.0
FETCH_SECONDS = 24 * 3600.0
"""A fetch has a day; what came of it is kept anyway."""


def fetch_newest(membership: Membership, reporter: Reporter) -> None:
    """Fetches the newest version, unless it is there, and makes it the one that rounds use.

    Raises:
        VerificationError, FetchError, OutputError, InputError: as ``receive``.
    """
    with grpc_source(str(membership.distribution), membership.tls) as source:
        fetched = receive(
            source,
            membership.home,
            organisation=membership.own.organisation,
            now=datetime.now(UTC),
            deadline_seconds=FETCH_SECONDS,
            reporter=reporter,
        )
    if fetched.moved_bytes:
        reporter.note(f"emulator version {fetched.version} is here: {fetched.size_bytes / 1e6:.1f} MB")


def fetch_first(membership: Membership, reporter: Reporter) -> None:
    """Fetches the newest version, and waits for it if the server is not there yet or has no grant yet.

    Raises:
        VerificationError, OutputError, InputError: as ``receive``.
    """
    while True:
        try:
            fetch_newest(membership, reporter)
            return
        except FetchError as error:
            reporter.note(f"no emulator yet, asking again in {RETRY_SECONDS:g} s: {error}")
            time.sleep(RETRY_SECONDS)


def wait_for_next_look(membership: Membership, told: TrainingRequest | None) -> TrainingRequest | None:
    """Waits, and tells new steps meanwhile where it may; returns the last step told, which was ``told`` before."""
    if not may_tell_steps(membership.own):
        time.sleep(LOOK_SECONDS)
        return told
    with grpc_source(str(membership.distribution), membership.tls) as source:
        return tell_steps(source, membership.home, seconds=LOOK_SECONDS, told=told)


def keep_fetching(membership: Membership, reporter: Reporter) -> None:
    """Looks for a newer version for ever; one that does not come, or does not hold, is asked for again later.

    Between two looks it tells the model owner how far training is, where the data owner's file lets it.
    """
    told = None
    while True:
        told = wait_for_next_look(membership, told)
        try:
            fetch_newest(membership, reporter)
        except (FetchError, VerificationError) as error:
            reporter.note(f"no newer emulator now: {error}")
