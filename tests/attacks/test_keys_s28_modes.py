"""S28 of the threat model, the part of the keys: a private key that others may read stops whatever would use it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from scaleot_core.bundle import load_verifying_key
from scaleot_core.enrolment.fingerprint import owner_fingerprint, request_fingerprint
from tests.support.enrolments import ADDRESSES, new_data_owner_home, new_owner_home
from tests.support.verbs import scaleot


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both homes; the clinic is approved and not yet admitted."""
    new_owner_home(tmp_path / "owner")
    new_data_owner_home(tmp_path / "clinic")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def approve(place: Path) -> int:
    request = place / "clinic" / "enrolment.json"
    digits = request_fingerprint(request.read_bytes())
    services = ("--distribution", ADDRESSES.distribution, "--fleet", ADDRESSES.fleet)
    return scaleot("org", "approve", place / "owner", request, "--fingerprint", digits, *services)


def accept(place: Path) -> int:
    admission = place / "clinic-a.admission.json"
    digits = owner_fingerprint(load_verifying_key(place / "owner" / "owner.pub"))
    return scaleot("org", "accept", place / "clinic", admission, "--fingerprint", digits)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
@pytest.mark.parametrize(
    ("key", "use"),
    [
        ("owner/authority/authority.key", approve),
        ("owner/owner.key", approve),
        ("clinic/identity.key", accept),
        ("clinic/tls.key", accept),
    ],
)
def test_s28_a_key_that_others_may_read_is_refused_with_its_cure(
    place: Path,
    key: str,
    mode: int,
    use: Callable[[Path], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    if use is accept:
        assert approve(place) == 0
        capsys.readouterr()
    (place / key).chmod(mode)
    before = snapshot(place)
    assert use(place) == 2
    assert snapshot(place) == before, "nothing was decided"
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{key} has mode {mode:04o}, expected 0600: run chmod 600" in captured.err
    assert len(captured.err.splitlines()) == 1


def snapshot(place: Path) -> dict[Path, bytes]:
    """Returns every file but locks, which are empty."""
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_s28_a_link_in_place_of_a_key_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = place / "owner" / "authority" / "authority.key"
    key.rename(place / "elsewhere.key")
    key.symlink_to(place / "elsewhere.key")
    assert approve(place) == 2
    assert "it is a symbolic link: give the file itself" in capsys.readouterr().err


def test_s28_no_secret_is_printed_by_the_verbs_that_make_or_use_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.jsonl").write_text('{"text": "canary-of-the-private-text"}\n')
    assert scaleot("keygen", "owner") == 0
    assert scaleot("org", "init", "clinic", "--organisation", "clinic-a", "--data", "notes.jsonl") == 0
    printed = "".join(capfd.readouterr())
    secrets = list(tmp_path.rglob("*.key"))
    assert len(secrets) == 11
    for path in secrets:
        for line in path.read_text().splitlines()[1:-1]:
            assert line not in printed or line.startswith("-----"), path
    assert "canary" not in printed
