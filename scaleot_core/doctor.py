"""Looks for what keeps a federation from working, before it does: each fault in one line, with its cure.

What every machine needs is here. What a home needs, its own side knows: an entry point of the group
``scaleot.checkups`` takes a directory and returns checks if it is a home of its kind.
"""

import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from packaging.requirements import Requirement

from scaleot_core.bundle.key_files import read_private_file
from scaleot_core.bundle.tls_files import TlsFiles, read_tls_files
from scaleot_core.errors import InputError, ScaleOTError

CHECKUPS_GROUP = "scaleot.checkups"
MIN_FREE_BYTES = 2 * 1024**3
EXPIRES_SOON = timedelta(days=14)


@dataclass(frozen=True)
class Check:
    """One question; ``look`` returns what is well in a few words, and raises one of our errors for what is not."""

    name: str
    look: Callable[[], str]


@dataclass(frozen=True)
class Finding:
    """The answer to one question."""

    name: str
    is_fault: bool
    text: str


Checkup = Callable[[Path], Sequence[Check] | None]


def examine(home: Path | None, checkups: Iterable[Checkup]) -> tuple[Finding, ...]:
    """Asks every question that concerns this machine and, if one is given, a home of either side.

    Raises:
        InputError: ``home`` is no home.
    """
    checks = list(machine_checks(home or Path.cwd()))
    if home is not None:
        of_home = [found for checkup in checkups if (found := checkup(home)) is not None]
        if not of_home:
            raise InputError(f"{home} is neither a model owner's home nor a data owner's: expected its .toml in it")
        checks += [check for found in of_home for check in found]
    return tuple(_ask(check) for check in checks)


def machine_checks(place: Path) -> tuple[Check, ...]:
    """Returns what every machine is asked."""
    return (
        Check("versions", _installed_versions),
        Check("disk", lambda: free_disk(place)),
        Check("gpu", describe_gpu),
    )


def free_disk(place: Path) -> str:
    """Says how much room there is; raises ``InputError`` if it is too little."""
    free = shutil.disk_usage(place).free
    if free < MIN_FREE_BYTES:
        raise InputError(f"{place} has {free / 1e9:.1f} GB left, expected {MIN_FREE_BYTES / 1e9:.1f}: make room")
    return f"{free / 1e9:.0f} GB free"


def describe_gpu() -> str:
    """Says what PyTorch would compute on."""
    import torch

    if not torch.cuda.is_available():
        return f"none that PyTorch sees; {os.cpu_count()} CPU cores"
    return ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))


def private_files(home: Path) -> str:
    """Says how many keys and secrets of a home its user alone can read; raises ``InputError`` if others can too."""
    mode = home.stat().st_mode & 0o777
    if mode & 0o077:
        raise InputError(f"{home} has mode {mode:04o}, expected 0700: run chmod 700 {home}")
    paths = [path for path in sorted(home.rglob("*")) if path.suffix == ".key" or path.name == "secret"]
    for path in paths:
        read_private_file(path)
    return f"{len(paths)} keys and secrets, for this user alone"


def certificate_chain(tls: TlsFiles, now: datetime) -> str:
    """Says how long a certificate still counts; raises ``InputError`` for one that does not, or not for long."""
    credentials = read_tls_files(tls, now=now)
    leaf = x509.load_pem_x509_certificates(credentials.certificate)[0]
    _check_issued(leaf, x509.load_pem_x509_certificates(credentials.authority), tls)
    left = leaf.not_valid_after_utc - now
    if left < EXPIRES_SOON:
        raise InputError(f"certificate {tls.certificate} expires in {left.days} days: have it renewed now")
    return f"valid for {left.days} more days"


def _check_issued(leaf: x509.Certificate, authorities: Sequence[x509.Certificate], tls: TlsFiles) -> None:
    for authority in authorities:
        try:
            leaf.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return
    raise InputError(f"certificate {tls.certificate} was not issued by {tls.authority}: use the two of one admission")


def _installed_versions() -> str:
    faults = []
    for line in importlib.metadata.requires("scaleot") or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            faults.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            faults.append(f"{requirement.name} is {version}, expected {requirement.specifier}")
    if faults:
        raise InputError(f"{'; '.join(faults)}: install scaleot again")
    return f"scaleot {importlib.metadata.version('scaleot')}, flwr {importlib.metadata.version('flwr')}"


def _ask(check: Check) -> Finding:
    try:
        return Finding(check.name, False, check.look())
    except ScaleOTError as error:
        return Finding(check.name, True, " ".join(str(error).split()))
