"""What ``scaleot doctor`` asks of a model owner's home."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from fl_server.deployment import LOOPBACK, OWNER_FILE, Deployment, check_ports, read_deployment
from scaleot_core.address import Address
from scaleot_core.doctor import Check, certificate_chain, private_files
from scaleot_core.errors import InputError
from scaleot_core.reaching import reach
from scaleot_core.supervision import sole_process


def check_home(home: Path) -> Sequence[Check] | None:
    """Returns the checks of a model owner's home; ``None`` if it is something else."""
    if not (home / OWNER_FILE).is_file():
        return None
    checks = [Check("keys", partial(private_files, home)), Check("settings", partial(_settings, home))]
    try:
        deployment = read_deployment(home)
    except InputError:
        return checks  # the check of the settings says why
    return [
        *checks,
        Check("certificate", lambda: certificate_chain(deployment.tls, datetime.now(UTC))),
        Check("clock", partial(_clock, deployment)),
        Check("services", partial(_services, deployment)),
    ]


def _settings(home: Path) -> str:
    deployment = read_deployment(home)
    return f"fleet {deployment.fleet}, distribution {deployment.distribution}"


def _clock(deployment: Deployment) -> str:
    """A clock that was set back shows in files that are newer than now."""
    newest = max(path.stat().st_mtime for path in deployment.home.iterdir())
    ahead = newest - datetime.now(UTC).timestamp()
    if ahead > 60:
        raise InputError(f"the clock is {ahead:.0f} s behind a file of {deployment.home}: set it (NTP)")
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, behind no file of the home"


def _services(deployment: Deployment) -> str:
    addresses = (deployment.fleet, deployment.distribution)
    try:
        with sole_process(deployment.state / "lock"):
            check_ports(*addresses, deployment.superlink)
            return "not running; the ports are free"
    except InputError as error:
        if "in use by another process" not in str(error):
            raise
    return "; ".join(reach(_from_here(address), deployment.tls) for address in addresses)


def _from_here(address: Address) -> Address:
    """Where this machine finds a service that listens on every address."""
    return Address(LOOPBACK, address.port) if address.host in ("0.0.0.0", "::") else address  # noqa: S104 - compared
