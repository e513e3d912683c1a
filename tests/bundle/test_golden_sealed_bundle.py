import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from scaleot_core.bundle import (
    load_identity,
    load_verifying_key,
    open_bundle,
    read_bundle,
    verify_bundle,
)
from tests.golden.make_sealed_bundle import FILES, MODEL, ORGANISATION

GOLDEN = Path(__file__).parents[1] / "golden"
NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("version", ["sealed-2"])
def test_a_bundle_of_every_released_format_still_opens(version: str, tmp_path: Path) -> None:
    directory = GOLDEN / version
    identity_file = tmp_path / "identity.pem"
    shutil.copyfile(directory / "TEST-ONLY-identity.pem", identity_file)
    identity_file.chmod(0o600)  # a version control system does not keep this mode
    owner = load_verifying_key(directory / "owner.pub.pem")
    verified = verify_bundle(read_bundle(directory / "bundle"), owner, now=NOW)
    assert verified.manifest.version == 3
    grant = (directory / "grant.dsse.json").read_bytes()
    with open_bundle(verified, grant, load_identity(identity_file), organisation=ORGANISATION, now=NOW) as opened:
        assert {name: path.read_bytes() for name, path in opened.files.items()} == FILES
        assert dict(opened.model) == MODEL
