import stat
from pathlib import Path
from typing import Any

import pytest

from fl_clients.releases import BLOB_FILE, LocalUpdate, Releases
from scaleot_core.adapters.spec import AdapterKind, AdapterSpec
from scaleot_core.errors import InputError, InstructionsRefusedError, OutputError
from scaleot_core.federation.messages import Instructions, Receipt

UPDATE = LocalUpdate(b"the adapter's bytes", 12, 1.25)


def instructions(**changes: Any) -> Instructions:
    fields = {
        "run": "run-1",
        "round": 1,
        "attempt": 1,
        "nonce": "1" * 64,
        "client": "clinic-a",
        "base_sha256": "2" * 64,
        "bundle_digest": "3" * 64,
        "adapter": AdapterSpec(AdapterKind.LORA, (1,), 2, seed=0),
        "local_steps": 1,
        "batch_size": 1,
        "learning_rate": 0.1,
        "optimizer": "sgd",
        "max_tokens": 16,
        "seed": 0,
    }
    return Instructions(**{**fields, **changes})


def receipt(**changes: Any) -> Receipt:
    return Receipt(**{"run": "run-1", "round": 1, "client": "clinic-a", "status": "accepted", **changes})


def test_any_attempt_of_a_round_finds_the_same_bytes(tmp_path: Path) -> None:
    releases = Releases(tmp_path / "releases")
    assert releases.find(instructions()) is None
    releases.keep(instructions(), UPDATE)
    assert Releases(tmp_path / "releases").find(instructions(attempt=2, nonce="f" * 64)) == UPDATE
    assert releases.find(instructions(round=2)) is None and releases.find(instructions(run="..")) is None


@pytest.mark.parametrize("change", [{"base_sha256": "9" * 64}, {"seed": 1}, {"local_steps": 2}])
def test_another_request_for_the_same_round_gets_no_second_update(tmp_path: Path, change: dict[str, Any]) -> None:
    releases = Releases(tmp_path)
    releases.keep(instructions(), UPDATE)
    with pytest.raises(InstructionsRefusedError, match=r"release\.other_request"):
        releases.find(instructions(**change))


def test_a_receipt_ends_the_round_and_takes_the_bytes(tmp_path: Path) -> None:
    releases = Releases(tmp_path)
    releases.keep(instructions(), UPDATE)
    releases.note(receipt(), b"signed")
    assert [path.name for path in tmp_path.rglob(BLOB_FILE)] == []
    assert [path.read_bytes() for path in tmp_path.rglob("receipt.json")] == [b"signed"]
    with pytest.raises(InstructionsRefusedError, match=r"release\.over"):
        releases.find(instructions())


def test_a_receipt_for_what_did_not_leave_from_here_is_kept_too(tmp_path: Path) -> None:
    releases = Releases(tmp_path / "releases")
    releases.note(receipt(round=4), b"signed")
    with pytest.raises(InstructionsRefusedError, match=r"release\.over"):
        releases.find(instructions(round=4))


def test_damaged_bytes_do_not_leave(tmp_path: Path) -> None:
    releases = Releases(tmp_path)
    releases.keep(instructions(), UPDATE)
    (path,) = tmp_path.rglob(BLOB_FILE)
    path.write_bytes(b"the adapter's byte")
    with pytest.raises(InputError, match="SHA-256"):
        releases.find(instructions())


def test_nobody_else_reads_what_lies_here_and_what_cannot_be_stored_does_not_leave(tmp_path: Path) -> None:
    Releases(tmp_path / "releases").keep(instructions(), UPDATE)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "releases").rglob("*")}
    assert modes == {0o700, 0o600} and stat.S_IMODE((tmp_path / "releases").stat().st_mode) == 0o700
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError):
        Releases(tmp_path / "file").keep(instructions(), UPDATE)
