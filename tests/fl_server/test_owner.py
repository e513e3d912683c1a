import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from fl_server.owner import (
    ADAPTER_FILE,
    INITIAL_ADAPTER_FILE,
    ROUNDS_FILE,
    SETTINGS_FILE,
    OwnerRunSettings,
    RoundRecord,
    check_clients,
    read_adapter,
    read_rounds,
    read_settings,
    save_rounds,
    write_atomically,
    write_run,
)
from scaleot_core.adapters.spec import AdapterKind, AdapterSpec
from scaleot_core.bundle import generate_signing_key
from scaleot_core.errors import InputError, OutputError, RunFileError
from tests.support.private_updates import privacy_request
from tests.support.updates import random_state

OWNER = generate_signing_key()


def settings(**changes: Any) -> OwnerRunSettings:
    fields = {
        "run": "run-1",
        "clients": 4,
        "clients_per_round": 2,
        "rounds": 3,
        "local_steps": 20,
        "batch_size": 8,
        "learning_rate": 5e-4,
        "optimizer": "adamw",
        "max_tokens": 128,
        "aggregation": "fedavg",
        "adapter": AdapterSpec(AdapterKind.LORA, (6, 12), 8, seed=2**53 - 1),
        "bundle_digest": "a" * 64,
        "seed": 0,
        "round_deadline_seconds": 600.0,
    }
    return OwnerRunSettings(**{**fields, **changes})


def record(number: int) -> RoundRecord:
    return RoundRecord(
        round=number,
        clients=("Klinik Süd",),
        rejected=(),
        train_loss=1.25,
        seconds=2.0,
        aggregate_seconds=0.5,
        bytes_down=10,
        bytes_up=20,
    )


def test_a_run_reads_back_as_it_was_written(tmp_path: Path) -> None:
    write_run(tmp_path, settings(), random_state(0), owner=OWNER)
    assert read_settings(tmp_path) == settings()
    adapter = read_adapter(tmp_path / INITIAL_ADAPTER_FILE)
    assert all(torch.equal(adapter[name], tensor) for name, tensor in random_state(0).items())


def test_records_and_adapter_read_back_as_they_were_saved(tmp_path: Path) -> None:
    save_rounds(tmp_path, "run-1", random_state(1), (record(1), record(2)))
    assert read_rounds(tmp_path) == (record(1), record(2))
    assert json.loads((tmp_path / ROUNDS_FILE).read_text())["format"] == "scaleot.rounds/1"
    adapter = read_adapter(tmp_path / ADAPTER_FILE)
    assert all(torch.equal(adapter[name], tensor) for name, tensor in random_state(1).items())


def test_a_new_run_removes_the_results_of_the_one_before(tmp_path: Path) -> None:
    save_rounds(tmp_path, "run-1", random_state(1), (record(1),))
    write_run(tmp_path, settings(), random_state(0), owner=OWNER)
    assert read_rounds(tmp_path) == ()
    assert not (tmp_path / ADAPTER_FILE).exists()


def test_every_fault_of_the_settings_is_reported_together(tmp_path: Path) -> None:
    write_run(tmp_path, settings(), random_state(0), owner=OWNER)
    values = json.loads((tmp_path / SETTINGS_FILE).read_text())
    del values["sha256"]  # as a person would who writes it
    values |= {"rounds": 0, "learning_rate": "fast", "colour": "blue"}
    (tmp_path / SETTINGS_FILE).write_text(json.dumps(values))
    with pytest.raises(RunFileError) as refused:
        read_settings(tmp_path)
    assert {fault.split(":")[0] for fault in refused.value.faults} == {"rounds", "learning_rate", "colour"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clients_per_round": 5}, "clients_per_round is 5"),
        ({"seed": 2**53}, "seed"),
        ({"adapter": AdapterSpec(AdapterKind.LORA, (1,), 2, seed=2**53)}, "adapter.seed"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"run": "../x"}, "run"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=SETTINGS_FILE):
        read_settings(tmp_path)
    with pytest.raises(InputError, match=ADAPTER_FILE):
        read_adapter(tmp_path / ADAPTER_FILE)
    (tmp_path / ROUNDS_FILE).write_text("{}")
    with pytest.raises(InputError, match=ROUNDS_FILE):
        read_rounds(tmp_path)


def test_the_number_of_clients_is_checked(tmp_path: Path) -> None:
    write_run(tmp_path, settings(), random_state(0), owner=OWNER)
    check_clients(tmp_path, 4)
    with pytest.raises(InputError, match="expects 4 clients; there are 3"):
        check_clients(tmp_path, 3)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full_disk(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match="file"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_directory_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="missing"):
        write_run(tmp_path / "missing", settings(), random_state(0), owner=OWNER)
    write_atomically(tmp_path / "mode", b"")
    assert stat.S_ISREG((tmp_path / "mode").stat().st_mode)


@pytest.mark.parametrize("aggregation", ["product", "median", "trimmed_mean", "multi_krum", "geometric_median"])
@pytest.mark.parametrize("mechanism", ["dpzero", "lmo-dp"])
def test_settings_that_average_scalars_by_another_rule_than_the_mean_are_refused(
    tmp_path: Path, mechanism: str, aggregation: str
) -> None:
    written = json.loads(settings(privacy=privacy_request(mechanism, rounds=3)).model_dump_json())
    (tmp_path / SETTINGS_FILE).write_text(json.dumps({**written, "aggregation": aggregation}))
    with pytest.raises(RunFileError, match=f"aggregation is {aggregation}, but the scalars of {mechanism}"):
        read_settings(tmp_path)
    for mean in ("fedavg", "ffa"):
        (tmp_path / SETTINGS_FILE).write_text(json.dumps({**written, "aggregation": mean}))
        assert read_settings(tmp_path).aggregation == mean


def test_settings_written_before_rules_had_numbers_are_read() -> None:
    written = json.loads(settings().model_dump_json())
    del written["trimmed_share"], written["assumed_attackers"]
    assert OwnerRunSettings.model_validate_json(json.dumps(written)) == settings()
