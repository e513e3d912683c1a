"""Every bad input of an enrolment, as the user meets it: one clear error, the right exit code, nothing changed."""

import io
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from fl_server.owner_home import OwnerHome
from fl_server.registry import Registry
from scaleot_core.bundle import load_verifying_key
from scaleot_core.enrolment.fingerprint import owner_fingerprint, request_fingerprint
from tests.support.enrolments import ADDRESSES, RECORD, new_data_owner_home, new_owner_home, now
from tests.support.verbs import scaleot

SERVICES = ("--distribution", ADDRESSES.distribution, "--fleet", ADDRESSES.fleet)
OTHER_DIGITS = "0123456789" * 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An owner's home with clinic-a as a member, that clinic's home, and bank's, which is not approved yet."""
    place = tmp_path_factory.mktemp("homes")
    new_owner_home(place / "owner")
    for name in ("clinic-a", "bank"):
        new_data_owner_home(place / name, name)
    assert approve(place, "clinic-a", "--out", place / "clinic-a.admission.json") == 0
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def request_of(place: Path, name: str) -> Path:
    return place / name / "enrolment.json"


def approve(place: Path, name: str, *options: object) -> int:
    digits = request_fingerprint(request_of(place, name).read_bytes())
    given = () if "--fingerprint" in options else ("--fingerprint", digits)
    return scaleot("org", "approve", place / "owner", request_of(place, name), *SERVICES, *given, *options)


def accept(place: Path, name: str, admission: str, *, digits: str | None = None) -> int:
    expected = owner_fingerprint(load_verifying_key(place / "owner" / "owner.pub"))
    return scaleot("org", "accept", place / name, place / admission, "--fingerprint", digits or expected)


def tampered(place: Path) -> int:
    digits = request_fingerprint(request_of(place, "bank").read_bytes())
    request_of(place, "bank").write_bytes(request_of(place, "bank").read_bytes().replace(b"payload", b"Payload", 1))
    return approve(place, "bank", "--fingerprint", digits)


def exchanged(place: Path) -> int:
    """The request was exchanged on its way for one that is whole in itself, under the same name."""
    digits = request_fingerprint(request_of(place, "bank").read_bytes())
    shutil.copy(new_data_owner_home(place / "thief", "bank").request, request_of(place, "bank"))
    return approve(place, "bank", "--fingerprint", digits)


def name_taken(place: Path) -> int:
    new_data_owner_home(place / "again", "clinic-a")
    return approve(place, "again", "--out", "x")


def expired_authority(place: Path) -> int:
    old = new_owner_home(place / "old", at=now() - timedelta(days=6 * 365))
    shutil.rmtree(place / "owner" / "authority")
    old.authority.rename(place / "owner" / "authority")
    return approve(place, "bank")


def admission_there(place: Path) -> int:
    (place / "bank.admission.json").write_text("mine")
    return approve(place, "bank")


def tampered_registry(place: Path) -> int:
    registry = place / "owner" / "organisations.jsonl"
    registry.write_bytes(registry.read_bytes().replace(b'"max_examples":1000000', b'"max_examples":1000001'))
    return approve(place, "bank")


def restored_registry(place: Path) -> int:
    registry = place / "owner" / "organisations.jsonl"
    registry.write_bytes(registry.read_bytes().splitlines(keepends=True)[0])
    return approve(place, "bank")


def no_repository(place: Path) -> int:
    shutil.rmtree(place / "owner" / "repository")
    return approve(place, "bank")


def keygen_again(place: Path) -> int:
    return scaleot("keygen", place / "owner")


def init_again(place: Path) -> int:
    (place / "notes.jsonl").write_text(RECORD)
    return scaleot("org", "init", place / "bank", "--organisation", "bank", "--data", "notes.jsonl")


def init_without_data(place: Path) -> int:
    return scaleot("org", "init", place / "new", "--organisation", "new", "--data", "none.jsonl")


def init_with_bad_name(place: Path) -> int:
    (place / "notes.jsonl").write_text(RECORD)
    return scaleot("org", "init", place / "new", "--organisation", "St. Mary's", "--data", "notes.jsonl")


def revoke(name: str, from_round: str = "3") -> Callable[[Path], int]:
    return lambda place: scaleot("org", "revoke", place / "owner", name, "--from-round", from_round, "--reason", "left")


CASES: dict[str, tuple[Callable[[Path], int], int, str]] = {
    "another fingerprint": (lambda place: approve(place, "bank", "--fingerprint", OTHER_DIGITS), 3, "do not go on"),
    "half a fingerprint": (lambda place: approve(place, "bank", "--fingerprint", "12345"), 3, "expected the 40 digits"),
    "tampered request": (tampered, 3, "[enrolment.fields]"),
    "exchanged request": (exchanged, 3, "[fingerprint.other]"),
    "name taken": (name_taken, 2, "the name clinic-a is taken, by clinic-a, and no name is used again"),
    "approved twice": (lambda place: approve(place, "clinic-a", "--out", "x"), 2, "the name clinic-a is taken"),
    "expired authority": (expired_authority, 2, "set the clock, or make a new home with `scaleot keygen`"),
    "admission exists": (admission_there, 2, "bank.admission.json exists already"),
    "no place for it": (lambda place: approve(place, "bank", "--out", "none/x"), 2, "to be a directory of yours"),
    "another host": (
        lambda place: approve(place, "bank", "--distribution", "elsewhere:1", "--fingerprint", OTHER_DIGITS),
        2,
        "elsewhere:1: the server's certificate is for",  # before anybody is telephoned
    ),
    "tampered registry": (tampered_registry, 3, "organisations.jsonl, line 2: its SHA-256 is not"),
    "restored registry": (restored_registry, 3, "line 2: it is missing: the head names line 2"),
    "no repository": (no_repository, 2, "cannot be read: No such file"),
    "no home": (lambda place: scaleot("org", "list", place / "none"), 2, "there is no registry of organisations"),
    "no request": (lambda place: scaleot("org", "approve", "owner", "none.json", *SERVICES), 2, "none.json cannot be"),
    "keygen again": (keygen_again, 2, "owner exists already, and is left as it is"),
    "init again": (init_again, 2, "bank exists already"),
    "init without data": (init_without_data, 2, "none.jsonl"),
    "init with a bad name": (init_with_bad_name, 2, "expected 1 to 64 letters"),
    "another's admission": (lambda place: accept(place, "bank", "clinic-a.admission.json"), 3, "[admission.organ"),
    "another owner's key": (
        lambda place: accept(place, "clinic-a", "clinic-a.admission.json", digits=OTHER_DIGITS),
        3,
        "[fingerprint.other]",
    ),
    "no admission": (lambda place: accept(place, "clinic-a", "none"), 2, "none cannot be read"),
    "a request as admission": (
        lambda place: accept(place, "bank", "bank/enrolment.json"),
        3,
        "bank/enrolment.json: expected the admission that `scaleot org approve` wrote: ",
    ),
    "an admission as request": (
        lambda place: scaleot("org", "approve", place / "owner", "clinic-a.admission.json", *SERVICES),
        3,
        "clinic-a.admission.json: expected the enrolment.json that `scaleot org init` wrote: ",
    ),
    "another file as request": (
        lambda place: scaleot("org", "approve", place / "owner", "owner/organisations.jsonl", *SERVICES),
        3,
        "owner/organisations.jsonl: expected the enrolment.json that `scaleot org init` wrote: ",
    ),
    "verify what is not published yet": (
        lambda place: scaleot("verify", place / "owner/repository", "--owner-public-key", place / "owner/owner.pub"),
        3,
        "owner/repository: expected metadata/timestamp.json [repository.empty]",
    ),
    "revoke a stranger": (revoke("stranger"), 2, "no organisation 'stranger'"),
    "revoke before round 0": (revoke("clinic-a", "-1"), 2, "--from-round"),
    "plug in nothing": (lambda place: scaleot("plug-in", place / "new"), 2, "has no run"),
    "verify nothing": (
        lambda place: scaleot("verify", place / "new", "--owner-public-key", place / "owner/owner.pub"),
        2,
        "new is no directory: expected a sealed bundle",
    ),
    "a host with a port": (lambda place: scaleot("keygen", "new", "--host", "h:1"), 2, "without a port"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_clear_error_and_changes_nothing(
    place: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    act, status, message = CASES[case]
    before = records(place)
    assert act(place) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not (place / "bank.admission.json").exists() or case == "admission exists"
    assert not list(place.glob(".*.partial")) and not (place / "new").exists()
    if case not in ("tampered registry", "restored registry", "no home"):
        assert records(place) == before


def records(place: Path) -> dict[str, bytes]:
    return {name: (place / "owner" / name).read_bytes() for name in ("organisations.jsonl", "audit.jsonl")}


def test_whoever_sees_another_fingerprint_at_the_prompt_says_no_and_nothing_is_done(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("org", "approve", place / "owner", request_of(place, "bank"), *SERVICES)
    before = records(place)
    for answer, status in (("n\n", 3), ("\n", 3), ("", 130)):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        assert scaleot(*command) == status
        assert request_fingerprint(request_of(place, "bank").read_bytes()) in capsys.readouterr().err
    assert records(place) == before
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert scaleot(*command) == 0
    assert capsys.readouterr().out == "bank.admission.json\n"
    assert Registry(OwnerHome(place / "owner").registry).is_active("bank", 0)


def test_a_whole_enrolment_goes_through_by_the_verbs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(*arguments: object) -> str:
        assert scaleot(*arguments) == 0
        return capsys.readouterr().out.strip()

    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.jsonl").write_text(RECORD * 20)
    owner = printed("keygen", "owner", "--host", "fed.example.org")
    digits = printed("org", "init", "clinic", "--organisation", "clinic-a", "--data", "notes.jsonl")
    admission = printed("org", "approve", "owner", "clinic/enrolment.json", "--fingerprint", digits, *SERVICES)
    assert printed("org", "accept", "clinic", admission, "--fingerprint", owner) == ""
    assert '"status": "active"' in printed("org", "list", "owner", "--json")
    printed("budget", "clinic", "--create")
    renewed = printed("org", "renew", "owner", "clinic-a", *SERVICES, "--out", "renewed.json")
    printed("org", "accept", "clinic", renewed)  # the owner's key is pinned: no second telephone call
    assert printed("authority", "renew", "owner").startswith("fed.example.org, localhost, 127.0.0.1, ::1 until 20")
    (tmp_path / "head").write_text(printed("audit-log", "sign", "owner"))
    printed("org", "revoke", "owner", "clinic-a", "--from-round", "2", "--reason", "the study ended")
    table = printed("org", "list", "owner")
    assert "clinic-a" in table and "revoked" in table
    key = ("--head", "head", "--owner-public-key", "clinic/owner.pub")
    assert printed("audit-log", "verify", "owner/audit.jsonl", *key).startswith("4 ")
