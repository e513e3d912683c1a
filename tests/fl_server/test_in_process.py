from pathlib import Path

import pytest
import torch

from fl_server.in_process import run_in_process
from fl_server.owner import ADAPTER_FILE, ROUNDS_FILE, read_adapter, read_rounds
from scaleot_core.errors import InputError, RoundFailedError
from scaleot_core.progress import SilentReporter
from tests.support.federations import Federation, build_federation, lora_spec, rewrite_data_owner


def run(federation: Federation) -> None:
    run_in_process(federation.owner_directory, federation.data_owner_directories, SilentReporter())


def test_the_rounds_leave_a_better_adapter_and_their_records(tmp_path: Path) -> None:
    federation = build_federation(tmp_path, clients=3, rounds=3)
    run(federation)
    adapter, rounds = read_adapter(federation.owner_directory / ADAPTER_FILE), read_rounds(federation.owner_directory)
    assert {name: tensor.shape for name, tensor in adapter.items()} == {
        name: tensor.shape for name, tensor in federation.initial_adapter.items()
    }
    assert any(not torch.equal(adapter[name], federation.initial_adapter[name]) for name in adapter)
    assert [record.round for record in rounds] == [1, 2, 3]
    assert all(record.clients == ("clinic-0", "clinic-1", "clinic-2") for record in rounds)
    assert all(record.rejected == () for record in rounds)
    assert rounds[0].train_loss is not None and rounds[-1].train_loss is not None
    assert rounds[-1].train_loss < rounds[0].train_loss


def test_the_bytes_recorded_are_the_adapters_and_little_else(tmp_path: Path) -> None:
    federation = build_federation(tmp_path, clients=2, rounds=1)
    run(federation)
    blob_bytes = (federation.owner_directory / ADAPTER_FILE).stat().st_size
    (record,) = read_rounds(federation.owner_directory)
    assert 2 * blob_bytes < record.bytes_down < 2 * (blob_bytes + 24_000), (
        "two pairs of signatures, a key, and receipts"
    )
    assert 2 * blob_bytes < record.bytes_up < 2 * (blob_bytes + 8_000), "one pair of signatures"
    assert 0 <= record.aggregate_seconds <= record.seconds


def test_a_run_repeats_to_the_last_bit(tmp_path: Path) -> None:
    federation = build_federation(tmp_path, clients=3, clients_per_round=2)
    results = []
    for _ in range(2):
        federation.begin_again()
        run(federation)
        results.append((federation.owner_directory / ADAPTER_FILE).read_bytes())
    assert results[0] == results[1]


def test_ffa_trains_and_carries_the_up_projections_only(tmp_path: Path) -> None:
    spec = lora_spec(freezes_down=True)
    federation = build_federation(tmp_path, clients=2, rounds=1, aggregation="ffa", adapter=spec)
    run(federation)
    adapter = read_adapter(federation.owner_directory / ADAPTER_FILE)
    assert adapter
    assert all(name.endswith("lora_B") for name in adapter)
    assert any(bool(tensor.any()) for tensor in adapter.values()), "B starts at zero and is trained"


def test_a_client_that_fails_is_named_with_a_code_and_the_others_go_on(tmp_path: Path) -> None:
    federation = build_federation(tmp_path, clients=3, rounds=1)
    rewrite_data_owner(federation.data_owner_directories[1], 'data = "train.jsonl.gz"', 'data = "patients.jsonl"')
    run(federation)
    (record,) = read_rounds(federation.owner_directory)
    assert record.clients == ("clinic-0", "clinic-2")
    assert [who.client for who in record.rejected] == ["clinic-1"]
    text = (federation.owner_directory / ROUNDS_FILE).read_text()
    assert "refusal: data" in text
    assert "patients" not in text, "not even a file's name leaves the house"


def test_every_client_failing_fails_the_run(tmp_path: Path) -> None:
    federation = build_federation(tmp_path, clients=2, rounds=2)
    for directory in federation.data_owner_directories:
        (directory / "grant").write_bytes(b"{}")
    with pytest.raises(RoundFailedError, match=r"clinic-0: E_CLIENT[\s\S]*grant\."):
        run(federation)
    assert len(read_rounds(federation.owner_directory)) == 1


def test_another_number_of_data_owners_than_the_run_expects_is_refused_at_once(tmp_path: Path) -> None:
    federation = build_federation(tmp_path, clients=3)
    with pytest.raises(InputError, match="expects 3 clients; there are 2"):
        run_in_process(federation.owner_directory, federation.data_owner_directories[:2], SilentReporter())


def test_a_data_owner_in_anothers_name_is_turned_away_and_the_other_takes_part(tmp_path: Path) -> None:
    federation = build_federation(tmp_path, clients=3, rounds=1)
    rewrite_data_owner(federation.data_owner_directories[2], '"clinic-2"', '"clinic-1"')
    run(federation)
    (record,) = read_rounds(federation.owner_directory)
    assert record.clients == ("clinic-0", "clinic-1")
    assert [who.reason for who in record.rejected] == ["E_SIGNATURE"]


def test_two_data_owners_of_one_name_and_key_are_both_turned_away(tmp_path: Path) -> None:
    federation = build_federation(tmp_path, clients=3, rounds=1)
    _, one, other = federation.data_owner_directories
    rewrite_data_owner(other, '"clinic-2"', '"clinic-1"')
    (other / "signing.key").write_bytes((one / "signing.key").read_bytes())
    run(federation)
    (record,) = read_rounds(federation.owner_directory)
    assert record.clients == ("clinic-0",)
    assert [(who.client, who.reason) for who in record.rejected] == [("clinic-1", "E_BINDING")]
