"""S09: sealing, verifying and opening need a few blocks of memory, however large the bundle is.

The acceptance figure is a peak below 256 MiB for 2 GiB; a growth of 64 MiB leaves the rest to what imports cost.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import datetime, json, pathlib, sys
from fl_server.memory import peak_memory_bytes
from scaleot_core.bundle import (
    generate_identity, generate_signing_key, issue_grant, open_bundle, read_bundle, seal_bundle, verify_bundle,
    verify_objects)

def peak_mib():
    return peak_memory_bytes() / 1024**2

directory, size = pathlib.Path(sys.argv[1]), int(sys.argv[2])
source = directory / "source"
source.mkdir()
with (source / "emulator.safetensors").open("wb") as file:
    file.truncate(size)
now, end = (datetime.datetime(year, 1, 1, tzinfo=datetime.UTC) for year in (2027, 2028))
owner, identity = generate_signing_key(), generate_identity()
peaks = {"start": peak_mib()}
sealed = seal_bundle(source, directory / "sealed", owner=owner, model={}, not_after=end)
peaks["sealed"] = peak_mib()
verified = verify_bundle(read_bundle(sealed.path), owner.public, now=now)
verify_objects(verified)
peaks["verified"] = peak_mib()
grant = issue_grant(sealed, owner=owner, organisation="a", recipient=identity.recipient, not_after=end)
with open_bundle(verified, grant, identity, organisation="a", now=now) as opened:
    peaks["opened"] = peak_mib()
    assert opened.files["emulator.safetensors"].stat().st_size == size
print(json.dumps(peaks))
"""


def peaks_mib(directory: Path, size: int) -> dict[str, float]:
    """Measures in a process of its own, because a process's peak only grows; memory files are not part of it."""
    command = [sys.executable, "-c", MEASURE, str(directory), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peaks: dict[str, float] = json.loads(done.stdout)
    return peaks


@pytest.mark.parametrize(
    "size_mib", [160, pytest.param(2048, marks=pytest.mark.slow)], ids=["160 MiB", "2 GiB (acceptance)"]
)
def test_peak_memory_grows_by_at_most_64_mib(tmp_path: Path, size_mib: int) -> None:
    peaks = peaks_mib(tmp_path, size_mib << 20)
    assert peaks["opened"] - peaks["start"] <= 64, peaks
