"""What tests of serving and fetching share: a sealed bundle, the parties' certificates, and a fetch of it."""

import os
from dataclasses import dataclass
from pathlib import Path

from fl_clients.fetch import FetchedBundle, fetch_bundle
from fl_clients.patient_source import PatientSource
from fl_clients.sources import Source
from scaleot_core.bundle import open_bundle, read_bundle, verify_bundle
from scaleot_core.bundle.manifest import BLOCK_BYTES, MANIFEST_FILE
from scaleot_core.bundle.tls_files import TlsFiles
from scaleot_core.bundle.verify import verify_manifest
from scaleot_core.progress import Reporter, SilentReporter
from tests.support.bundles import CLINIC, FILES, NOW, Scene, object_name, scene
from tests.support.certificates import Authority

LARGE_FILES = {**FILES, "emulator.safetensors": os.urandom(BLOCK_BYTES + (3 << 20))}
"""Of which the ciphertext has two blocks, the second of 3 MiB and a little."""


@dataclass(frozen=True)
class Parties:
    """A sealed bundle, who may serve it, and a clinic that may fetch it."""

    scene: Scene
    authority: Authority
    server: TlsFiles
    clinic: TlsFiles
    own: Path

    def fetch(
        self,
        source: Source,
        *,
        own: Path | None = None,
        deadline_seconds: float = 60,
        reporter: Reporter | None = None,
        streams: int = 4,
    ) -> FetchedBundle:
        envelope = (self.scene.path / MANIFEST_FILE).read_bytes()
        return fetch_bundle(
            PatientSource(source, deadline_seconds=deadline_seconds),
            own or self.own,
            envelope,
            verify_manifest(envelope, self.scene.owner.public, now=NOW),
            reporter=reporter or SilentReporter(),
            streams=streams,
        )

    @property
    def digest(self) -> str:
        return self.scene.sealed.digest

    @property
    def place(self) -> Path:
        return self.own / self.digest

    def object_of(self, name: str, files: dict[str, bytes]) -> str:
        return object_name(self.scene.manifest()["objects"][sorted(files).index(name)])

    def open(self, path: Path) -> dict[str, bytes]:
        """Goes the way of a data owner after the fetch."""
        verified = verify_bundle(read_bundle(path), self.scene.owner.public, now=NOW)
        with open_bundle(verified, self.scene.grant, self.scene.identity, organisation=CLINIC, now=NOW) as opened:
            return {name: file.read_bytes() for name, file in opened.files.items()}


def parties(directory: Path, files: dict[str, bytes] = FILES) -> Parties:
    authority = Authority(directory / "authority")
    return Parties(
        scene(directory, files), authority, authority.issue("server"), authority.issue(CLINIC), directory / "own"
    )
