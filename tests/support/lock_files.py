"""Reads the lock files under deploy/ as pip does: which release of what, and the hashes that its files may have."""

import re
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
LOCKS = ("cpu", "cuda")
"""Builds of torch; each has a file of its own beside ``requirements.lock``, which both share."""


@dataclass(frozen=True)
class Pin:
    """One release that may be installed, and what its files may be."""

    version: Version
    hashes: tuple[str, ...]


def read_lock(torch: str) -> dict[str, Pin]:
    """Reads what one image installs; raises ``ValueError`` where a line is no pin or a name stands twice."""
    pins: dict[str, Pin] = {}
    for file in (DEPLOY / "requirements.lock", DEPLOY / f"requirements-torch-{torch}.lock"):
        text = re.sub(r"^\s*#.*$", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
        for line in filter(str.strip, text.splitlines()):
            if line.startswith("--extra-index-url "):
                continue
            requirement = Requirement(line.partition(" --hash=")[0])
            (specifier,) = requirement.specifier
            name = canonicalize_name(requirement.name)
            if specifier.operator != "==" or name in pins:
                raise ValueError(f"{file.name}: {name}")
            pins[name] = Pin(Version(specifier.version), tuple(re.findall(r"--hash=(\S+)", line)))
    return pins
