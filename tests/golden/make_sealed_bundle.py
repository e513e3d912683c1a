"""Makes the golden sealed bundle of a format version, once, when the format is released.

    python -m tests.golden.make_sealed_bundle tests/golden/sealed-2

The keys are made here and serve this test only: the identity lies in the repository for everyone to read, and the owner
key is thrown away. A bundle that was released is never made again; it must open for ever.
"""

import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from scaleot_core.bundle import (
    generate_identity,
    generate_signing_key,
    issue_grant,
    save_identity,
    save_verifying_key,
    seal_bundle,
)
from tests.support.bundles import write_files

END = datetime(9000, 1, 1, tzinfo=UTC)
ORGANISATION = "Beispielklinik Süd"
MODEL = {"layers": [{"index": 0, "role": "adapter"}, {"index": 1, "role": "dropped"}], "removed_rank_share": 0.8}
FILES = {
    "config.json": b'{"model_type":"llama"}',
    "emulator.safetensors": bytes(range(256)) * 80,  # two chunks of ciphertext
    "notes/empty.txt": b"",
}
NOTE = b"TEST ONLY. This key is public: never seal anything real to it.\n"


def make(directory: Path) -> None:
    """Writes the bundle, its grant, the owner's public key and the recipient's identity."""
    owner, identity = generate_signing_key(), generate_identity()
    directory.mkdir()
    with tempfile.TemporaryDirectory() as temporary:
        source = write_files(Path(temporary) / "source", FILES)
        sealed = seal_bundle(source, directory / "bundle", owner=owner, model=MODEL, version=3, not_after=END)
        save_identity(identity, Path(temporary) / "identity.pem")
        key = (Path(temporary) / "identity.pem").read_bytes()
    (directory / "TEST-ONLY-identity.pem").write_bytes(NOTE + key)
    save_verifying_key(owner.public, directory / "owner.pub.pem")
    grant = issue_grant(sealed, owner=owner, organisation=ORGANISATION, recipient=identity.recipient, not_after=END)
    (directory / "grant.dsse.json").write_bytes(grant)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
