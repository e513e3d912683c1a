import stat
from datetime import timedelta
from pathlib import Path

import pytest

from fl_server.audit_log import AuditLog
from fl_server.owner_home import OwnerHome, create_owner_home
from fl_server.registry import Registry
from scaleot_core.bundle import load_signing_key, load_verifying_key
from scaleot_core.bundle.tls_files import read_tls_files
from scaleot_core.errors import InputError, OutputError
from tests.support.enrolments import HOST, new_owner_home, now


def test_a_home_holds_everything_an_owner_needs_and_nobody_else_may_look(tmp_path: Path) -> None:
    root = tmp_path / "owner"
    public = create_owner_home(root, [HOST], now=now())
    home = OwnerHome(root)
    assert load_signing_key(home.owner_key).public == load_verifying_key(home.owner_public_key) == public
    read_tls_files(home.server_tls, now=now())
    assert Registry(home.registry).members() == ()
    AuditLog(home.audit_log).check_owner(public)
    assert (root / "repository" / "metadata" / "1.root.json").is_file()
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    for secret in [home.owner_key, *home.authority.glob("*.key"), *root.glob("keys/*"), *root.glob("*.jsonl")]:
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600, secret


def test_a_home_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a host name"):
        create_owner_home(tmp_path / "owner", ["no host"], now=now())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="cannot be written"):
        create_owner_home(tmp_path / "none" / "owner", [], now=now())
    assert list(tmp_path.iterdir()) == []


def test_a_home_is_never_replaced(tmp_path: Path) -> None:
    home = new_owner_home(tmp_path / "owner")
    before = home.owner_key.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        create_owner_home(home.root, [], now=now())
    assert home.owner_key.read_bytes() == before


def test_the_servers_certificate_is_good_for_90_days(tmp_path: Path) -> None:
    home = new_owner_home(tmp_path / "owner")
    read_tls_files(home.server_tls, now=now() + timedelta(days=89))
    with pytest.raises(InputError, match="have a new one issued"):
        read_tls_files(home.server_tls, now=now() + timedelta(days=91))
