from datetime import UTC, datetime
from pathlib import Path

import pytest

from scaleot_core.bundle.tls_files import TlsFiles, read_tls_files
from scaleot_core.errors import InputError
from tests.support.bundles import CLINIC
from tests.support.certificates import Authority


def test_each_fault_of_the_pem_files_is_named(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    authority = Authority(tmp_path / "authority")
    good = authority.issue(CLINIC)
    other_key, expired = authority.issue("other").private_key, authority.issue(CLINIC, days=-1)
    no_pem, open_key = tmp_path / "no.pem", tmp_path / "open.key"
    no_pem.write_bytes(b"text")
    no_pem.chmod(0o600)
    open_key.write_bytes(good.private_key.read_bytes())
    open_key.chmod(0o644)
    for files, fault in (
        (TlsFiles(tmp_path / "none", good.private_key, good.authority), "none cannot be read: No such file"),
        (TlsFiles(no_pem, good.private_key, good.authority), "no.pem: expected certificates in PEM"),
        (TlsFiles(good.certificate, good.private_key, no_pem), "no.pem: expected certificates in PEM"),
        (TlsFiles(good.certificate, no_pem, good.authority), "no.pem: expected an unencrypted private key"),
        (TlsFiles(good.certificate, open_key, good.authority), "has mode 0644, expected 0600"),
        (TlsFiles(good.certificate, other_key, good.authority), "is not the private key of"),
        (expired, "is valid from .* have a new one issued"),
    ):
        with pytest.raises(InputError, match=fault):
            read_tls_files(files, now=now)
    assert "PRIVATE" not in repr(read_tls_files(good, now=now))
