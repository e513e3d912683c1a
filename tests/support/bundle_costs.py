"""What sealing, fetching and opening cost beside plain AES-256-GCM of the same file, each in a process of its own.

Usage: python -m tests.support.bundle_costs [--mib 1024] [--repeats 3] [--directory DIR]

Prints a table of processor seconds, user and system together, the least of the repeats, and of peak memory. Everything
reads and writes files in DIR, a temporary directory by default. The plaintext of ``open`` is in a memory file, which no
peak counts.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PIECE = 1 << 20
CLINIC = "clinic-a"
STAGES = ("aes-gcm encrypt", "aes-gcm decrypt", "seal", "fetch", "open")


def aes_gcm_encrypt(directory: Path) -> None:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    cipher, number = AESGCM(bytes(32)), 0
    with _plain(directory).open("rb") as source, (directory / "gcm").open("wb") as sink:
        while piece := source.read(PIECE):
            sink.write(cipher.encrypt(number.to_bytes(12, "big"), piece, None))
            number += 1
        sink.flush()
        os.fsync(sink.fileno())


def aes_gcm_decrypt(directory: Path) -> None:
    """Decrypts into a memory file, as opening a bundle does."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    cipher, number = AESGCM(bytes(32)), 0
    with (directory / "gcm").open("rb") as source, os.fdopen(os.memfd_create("gcm"), "wb") as sink:
        while piece := source.read(PIECE + 16):
            sink.write(cipher.decrypt(number.to_bytes(12, "big"), piece, None))
            number += 1


def seal(directory: Path) -> None:
    from scaleot_core.bundle import load_signing_key, save_data_key, seal_bundle

    for left in ("sealed", "data.key"):
        path = directory / left
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    owner, end = load_signing_key(directory / "owner.key"), datetime.now(UTC) + timedelta(days=1)
    sealed = seal_bundle(directory / "source", directory / "sealed", owner=owner, model={}, not_after=end)
    save_data_key(sealed.data_key, directory / "data.key")


def fetch(directory: Path) -> None:
    from fl_clients.fetch import fetch_bundle
    from fl_clients.patient_source import PatientSource
    from fl_clients.sources import FolderSource
    from scaleot_core.bundle import load_verifying_key
    from scaleot_core.bundle.manifest import MANIFEST_FILE
    from scaleot_core.bundle.verify import verify_manifest
    from scaleot_core.progress import SilentReporter

    shutil.rmtree(directory / "bundles", ignore_errors=True)
    envelope = (directory / "sealed" / MANIFEST_FILE).read_bytes()
    signed = verify_manifest(envelope, load_verifying_key(directory / "owner.pub"), now=datetime.now(UTC))
    source = PatientSource(FolderSource(directory / "sealed"), deadline_seconds=600)
    fetch_bundle(source, directory / "bundles", envelope, signed, reporter=SilentReporter())


def open_fetched(directory: Path) -> None:
    """Opens as a data owner does: every block verified right before it is decrypted."""
    from scaleot_core.bundle import load_identity, load_verifying_key, open_bundle, read_bundle, verify_bundle

    (path,) = (path for path in (directory / "bundles").iterdir() if path.is_dir())
    now, identity = datetime.now(UTC), load_identity(directory / "identity.key")
    verified = verify_bundle(read_bundle(path), load_verifying_key(directory / "owner.pub"), now=now)
    grant = (directory / "grant.json").read_bytes()
    with open_bundle(verified, grant, identity, organisation=CLINIC, now=now) as opened:
        assert opened.files["emulator.safetensors"].stat().st_size == _plain(directory).stat().st_size


WORK: dict[str, Callable[[Path], None]] = dict(
    zip(STAGES, (aes_gcm_encrypt, aes_gcm_decrypt, seal, fetch, open_fetched), strict=True)
)


def _plain(directory: Path) -> Path:
    return directory / "source" / "emulator.safetensors"


def _grant(directory: Path) -> None:
    from scaleot_core.bundle import (
        SealedBundle,
        issue_grant,
        load_data_key,
        load_identity,
        load_signing_key,
        load_verifying_key,
        read_bundle,
        verify_bundle,
    )

    owner = load_verifying_key(directory / "owner.pub")
    verified = verify_bundle(read_bundle(directory / "sealed"), owner, now=datetime.now(UTC))
    key = load_data_key(directory / "data.key")
    sealed = SealedBundle(verified.path, verified.bundle_id, verified.digest, 0, key)
    grant = issue_grant(
        sealed,
        owner=load_signing_key(directory / "owner.key"),
        organisation=CLINIC,
        recipient=load_identity(directory / "identity.key").recipient,
        not_after=verified.manifest.not_after,
    )
    (directory / "grant.json").write_bytes(grant)


def prepare(directory: Path, mib: int) -> None:
    """Writes the keys and a file of random bytes."""
    from scaleot_core.bundle import (
        generate_identity,
        generate_signing_key,
        save_identity,
        save_signing_key,
        save_verifying_key,
    )

    owner = generate_signing_key()
    save_signing_key(owner, directory / "owner.key")
    save_verifying_key(owner.public, directory / "owner.pub")
    save_identity(generate_identity(), directory / "identity.key")
    (directory / "source").mkdir()
    with _plain(directory).open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(PIECE))


def measured(stage: str, directory: Path) -> dict[str, float]:
    """Runs a stage in a process of its own: its processor seconds without imports, and its peak memory in MiB."""
    command = [sys.executable, "-m", "tests.support.bundle_costs", "--stage", stage, "--directory", str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def costs(directory: Path, mib: int, repeats: int) -> dict[str, dict[str, float]]:
    """Returns the least processor seconds, and the greatest peak, of every stage."""
    prepare(directory, mib)
    found: dict[str, dict[str, float]] = {}
    for stage in STAGES:
        if stage == "open":
            _grant(directory)
        runs = [measured(stage, directory) for _ in range(repeats)]
        found[stage] = {
            "cpu_seconds": min(one["cpu_seconds"] for one in runs),
            "peak_mib": max(one["peak_mib"] for one in runs),
        }
    return found


def table(found: dict[str, dict[str, float]], mib: int) -> str:
    """Returns the figures as lines, each beside plain AES-256-GCM."""
    lines = [f"{mib} MiB           CPU s   MiB/CPU s   of plain AES-256-GCM   peak MiB"]
    for stage, one in found.items():
        plain = found["aes-gcm encrypt" if stage in ("seal", "aes-gcm encrypt") else "aes-gcm decrypt"]
        seconds, peak = one["cpu_seconds"], one["peak_mib"]
        share = plain["cpu_seconds"] / seconds
        lines.append(f"{stage:<16} {seconds:7.2f} {mib / seconds:11.0f} {share:22.0%} {peak:10.0f}")
    return "\n".join(lines)


def _run_stage(stage: str, directory: Path) -> None:

    import scaleot_core.bundle  # noqa: F401
    from fl_server.memory import peak_memory_bytes

    started = time.process_time()
    WORK[stage](directory)
    seconds = time.process_time() - started
    print(json.dumps({"cpu_seconds": seconds, "peak_mib": peak_memory_bytes() / 1024**2}))  # noqa: T201


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--stage", choices=STAGES)
    asked = parser.parse_args()
    if asked.stage:
        _run_stage(asked.stage, asked.directory)
        return
    with tempfile.TemporaryDirectory(dir=asked.directory, prefix="bundle-costs-") as name:
        sys.stdout.write(table(costs(Path(name), asked.mib, asked.repeats), asked.mib) + "\n")


if __name__ == "__main__":
    main()
