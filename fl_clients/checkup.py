"""What ``scaleot doctor`` asks of a data owner's home."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from fl_clients.membership import Membership, read_membership
from fl_clients.policy import DATA_OWNER_FILE, read_data_owner_file
from scaleot_core.doctor import Check, certificate_chain, describe_gpu, private_files
from scaleot_core.errors import InputError, ScaleOTError
from scaleot_core.figures import no_more
from scaleot_core.reaching import compare_clocks, reach


def check_home(home: Path) -> Sequence[Check] | None:
    """Returns the checks of a data owner's home; ``None`` if it is something else."""
    if not (home / DATA_OWNER_FILE).is_file():
        return None
    checks = [
        Check("keys", partial(private_files, home)),
        Check("data", partial(_data, home)),
        Check("ledger", partial(_ledger, home)),
        Check("admission", partial(_admission, home)),
    ]
    try:
        membership = read_membership(home)
    except ScaleOTError:
        return checks  # the check of the admission says why
    tls = membership.tls
    return [
        *checks,
        Check("certificate", lambda: certificate_chain(tls, datetime.now(UTC))),
        Check("device", partial(_device, membership)),
        Check("fleet", lambda: reach(membership.fleet, tls)),
        Check("distribution", lambda: reach(membership.distribution, tls)),
        Check("clock", lambda: compare_clocks(membership.fleet, tls)),
    ]


def _data(home: Path) -> str:
    from scaleot_core.training.data import read_records

    own = read_data_owner_file(home)
    read_records(own.data)
    return f"{own.data} can be read"


def _ledger(home: Path) -> str:
    """Says what is left of the budget; a round under a mechanism is refused without a ledger."""
    from fl_clients.own_ledger import scope_of_ledger, summarise_own_ledger

    own = read_data_owner_file(home)
    if own.privacy is None:
        return "none: data-owner.toml has no [privacy], and updates leave as they are"
    summary = summarise_own_ledger(own)
    about = scope_of_ledger(summary).at_delta(summary.terms.delta)
    if summary.left_epsilon <= 0:
        raise InputError(f"epsilon {summary.budget_epsilon:g} {about} is spent: private rounds are refused")
    return f"epsilon {no_more(summary.left_epsilon)} of {summary.budget_epsilon:g} left {about}"


def _admission(home: Path) -> str:
    membership = read_membership(home)
    return f"{membership.own.organisation}, at {membership.fleet}"


def _device(membership: Membership) -> str:
    import torch

    from scaleot_core.models.devices import chosen_devices

    chosen_devices(membership.own.device, torch.cuda.device_count())
    return f"{membership.own.device}: {describe_gpu()}"
