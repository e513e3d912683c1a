"""A data owner's round under a mechanism: through its own ledger, within its own budget, and nothing else leaves."""

import gzip
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from fl_clients.client_app import app
from fl_clients.own_ledger import create_own_ledger
from fl_clients.policy import read_data_owner_file
from fl_clients.refusal import FAILURE_LOG, refuse
from fl_clients.session import EmulatorShelf, take_part
from fl_server.grid import InProcessGrid
from fl_server.wire import from_records, to_records
from scaleot_core.errors import BudgetExhaustedError, InputError, InstructionsRefusedError, LedgerError
from scaleot_core.federation.messages import Payload, Refusal, UpdateStatement, decode_statement, digest_of
from scaleot_core.federation.signing import claimed
from scaleot_core.federation.validation import SCALARS, AdapterSchema, decode_tensors, encode_tensors
from scaleot_core.privacy.accountant import epsilon_of
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.ledger_file import read_chain
from scaleot_core.privacy.ledger_lines import Committed, Reserved
from scaleot_core.privacy.private_examples import private_examples
from scaleot_core.training.data import TextRecord
from tests.support.federations import Federation, build_federation, rewrite_data_owner, tiny_emulator
from tests.support.private_updates import OWN_PRIVACY, instructions, privacy_request, private_federation

NOW = datetime.now(UTC)
SHELF = EmulatorShelf()


def part(federation: Federation, **changes: Any) -> Payload:
    return take_part(federation.data_owner_directories[0], instructions(federation, **changes), SHELF, now=NOW)


def statement_of(answer: Payload) -> UpdateStatement:
    return decode_statement(claimed(answer.statement), UpdateStatement)


def ledger_entries(federation: Federation) -> list[object]:
    return list(read_chain(federation.data_owner_directories[0] / "ledger").entries)


@pytest.mark.parametrize("mechanism", ["dp-sgd", "update-gaussian"])
def test_an_adapter_leaves_with_its_noise_named_and_without_a_loss(tmp_path: Path, mechanism: str) -> None:
    federation = private_federation(tmp_path, mechanism, clients=1)
    answer = part(federation)
    statement = statement_of(answer)
    assert statement.train_loss is None and statement.privacy is not None
    assert statement.privacy.noise == "gaussian"
    assert statement.privacy.count == (1 if mechanism == "update-gaussian" else federation.settings.local_steps)
    update = decode_tensors(answer.tensors, AdapterSchema.of(federation.initial_adapter))
    assert any(not torch.equal(update[name], federation.initial_adapter[name]) for name in update)


def test_dpzero_sends_a_scalar_for_each_step_and_direction_and_no_adapter(tmp_path: Path) -> None:
    federation = private_federation(tmp_path, "dpzero", clients=1)
    answer = part(federation)
    scalars = decode_tensors(answer.tensors, AdapterSchema.of_scalars(federation.settings.local_steps, 2))[SCALARS]
    assert scalars.dtype is torch.int32 and bool(scalars.any())
    assert len(answer.tensors) < 300


def test_the_ledger_is_charged_before_and_committed_after_with_the_bytes_that_left(tmp_path: Path) -> None:
    federation = private_federation(tmp_path, "dp-sgd", clients=1)
    answer = part(federation)
    _, reserved, committed = ledger_entries(federation)
    assert isinstance(reserved, Reserved) and isinstance(committed, Committed)
    assert committed.release_sha256 == digest_of(answer.tensors)
    said = statement_of(answer).privacy
    assert said is not None
    assert reserved.events == (PrivacyEvent(said.noise, said.parameters, said.sample_rate, said.count),)
    assert said.ledger_head == read_chain(federation.data_owner_directories[0] / "ledger").head


def test_all_planned_rounds_keep_the_budget_and_half_the_noise_would_not(tmp_path: Path) -> None:
    federation = private_federation(tmp_path, "dp-sgd", clients=1)
    said = statement_of(part(federation)).privacy
    assert said is not None
    event = PrivacyEvent(said.noise, said.parameters, said.sample_rate, said.count)
    assert 7.9 < epsilon_of((event.times(2),), 1e-3) <= 8.0
    less = {"noise_multiplier": said.parameters["noise_multiplier"] / 2}
    assert epsilon_of((PrivacyEvent(said.noise, less, said.sample_rate, said.count * 2),), 1e-3) > 8.0


def test_a_round_that_was_released_is_sent_again_byte_for_byte_and_charged_once(tmp_path: Path) -> None:
    federation = private_federation(tmp_path, "dp-sgd", clients=1)
    first, again = part(federation), part(federation, nonce="b" * 64)
    assert again.tensors == first.tensors
    assert statement_of(again).nonce == "b" * 64
    assert sum(isinstance(entry, Reserved) for entry in ledger_entries(federation)) == 1


def test_another_round_has_fresh_noise_and_a_charge_of_its_own(tmp_path: Path) -> None:
    federation = private_federation(tmp_path, "dp-sgd", clients=1)
    first, second = part(federation), part(federation, round=2)
    assert first.tensors != second.tensors
    assert sum(isinstance(entry, Reserved) for entry in ledger_entries(federation)) == 2


@pytest.mark.parametrize("changes", [{"local_steps": 9}, {"batch_size": 1}, {"privacy": privacy_request("dp-sgd")}])
def test_a_run_keeps_the_kind_of_round_that_its_first_was_charged_as(tmp_path: Path, changes: dict[str, Any]) -> None:
    federation = private_federation(tmp_path, "dpzero", clients=1)
    part(federation)
    before = ledger_entries(federation)
    with pytest.raises(InstructionsRefusedError, match=r"privacy\.changed"):
        part(federation, round=2, **changes)
    assert ledger_entries(federation) == before


def test_a_run_keeps_its_noise_when_another_run_is_charged_between_its_rounds(tmp_path: Path) -> None:
    federation = private_federation(tmp_path, "dp-sgd", clients=1)
    part(federation)
    rewrite_data_owner(federation.data_owner_directories[0], "epsilon = 8.0", "epsilon = 20.0")
    part(federation, run="another")
    part(federation, round=2)
    events = [entry.events for entry in ledger_entries(federation) if isinstance(entry, Reserved)]
    assert events[0] == events[2] != events[1]


def test_two_data_owners_with_the_same_records_and_seeds_have_different_noise(tmp_path: Path) -> None:
    one = private_federation(tmp_path / "one", "dpzero", clients=1)
    other = private_federation(tmp_path / "other", "dpzero", clients=1)
    assert one.settings.seed == other.settings.seed
    torch.manual_seed(0)
    first = part(one).tensors
    torch.manual_seed(0)
    assert part(other).tensors != first


def test_a_released_round_is_not_released_again_on_another_adapter(tmp_path: Path) -> None:
    federation = private_federation(tmp_path, "dp-sgd", clients=1)
    part(federation)
    moved = encode_tensors({name: tensor + 1 for name, tensor in federation.initial_adapter.items()})
    asked = instructions(federation, base_sha256=digest_of(moved))
    with pytest.raises(InstructionsRefusedError) as refused:
        take_part(federation.data_owner_directories[0], replace(asked, tensors=moved), SHELF, now=NOW)
    assert refused.value.code == "privacy.released"


def test_s23_the_budget_refuses_a_round_whatever_the_server_asks(tmp_path: Path) -> None:
    """The server plans one round, so that all the budget goes into it, and then asks for another."""
    federation = private_federation(tmp_path, "dp-sgd", clients=1)
    part(federation, privacy=privacy_request(rounds=1))
    with pytest.raises(BudgetExhaustedError) as refused:
        part(federation, round=2, privacy=privacy_request(rounds=1))
    assert refused.value.rounds_that_fit == 0 and refused.value.exit_code == 4
    assert decode_statement(refuse(refused.value, "a" * 64, None).statement, Refusal).code == "privacy.budget"
    assert sum(isinstance(entry, Reserved) for entry in ledger_entries(federation)) == 1


def test_noise_of_the_data_owner_s_own_is_refused_before_training_where_the_rounds_do_not_fit(tmp_path: Path) -> None:
    own = f"{OWN_PRIVACY}noise_multiplier = 1.0\n"
    federation = private_federation(tmp_path, "dp-sgd", own=own, clients=1)
    with pytest.raises(BudgetExhaustedError) as refused:
        part(federation, privacy=privacy_request(rounds=100))
    assert 1 <= refused.value.rounds_that_fit < 100
    part(federation, privacy=privacy_request(rounds=refused.value.rounds_that_fit))


@pytest.mark.parametrize("asked", [None, privacy_request("lmo-dp")])
def test_a_data_owner_that_insists_on_its_mechanisms_takes_no_other_and_none(tmp_path: Path, asked: object) -> None:
    federation = private_federation(tmp_path, "dp-sgd", clients=1)
    with pytest.raises(InstructionsRefusedError) as refused:
        part(federation, privacy=asked)
    assert refused.value.code == "policy.privacy"
    assert len(ledger_entries(federation)) == 1


def test_a_ledger_that_is_gone_is_no_fresh_budget(tmp_path: Path) -> None:
    federation = private_federation(tmp_path, "dp-sgd", clients=1)
    part(federation)
    ledger = federation.data_owner_directories[0] / "ledger"
    ledger.rename(tmp_path / "gone")
    with pytest.raises(
        InputError, match=r"no privacy ledger at .*make it once with `scaleot budget DIRECTORY --create"
    ):
        part(federation, round=2)
    assert not ledger.exists()
    (tmp_path / "gone").rename(ledger)
    part(federation, round=2)


def test_a_data_owner_without_a_budget_adds_no_noise_that_nobody_accounts_for(tmp_path: Path) -> None:
    federation = build_federation(tmp_path, clients=1)
    with pytest.raises(InstructionsRefusedError) as refused:
        part(federation, privacy=privacy_request())
    assert refused.value.code == "policy.privacy"


def test_a_ledger_of_records_is_not_charged_in_whole_data_sets(tmp_path: Path) -> None:
    federation = private_federation(tmp_path, "dp-sgd", clients=1)
    part(federation)
    rewrite_data_owner(federation.data_owner_directories[0], '["dp-sgd", "dpzero"]', '["update-gaussian"]')
    with pytest.raises(LedgerError, match="line 1: it is of another unit"):
        part(federation, round=2, privacy=privacy_request("update-gaussian"))


def test_other_records_need_another_ledger(tmp_path: Path) -> None:
    federation = private_federation(tmp_path, "dp-sgd", clients=1)
    part(federation)
    directory = federation.data_owner_directories[0]
    rewrite_data_owner(directory, 'data = "train.jsonl.gz"', 'data = "other.jsonl"')
    (directory / "other.jsonl").write_text('{"text": "the clinic saw a patient"}\n' * 8)
    with pytest.raises(LedgerError, match="another data set") as refused:
        part(federation, round=2)
    assert (refused.value.line, refused.value.exit_code) == (1, 3)


def test_what_is_told_of_the_records_is_what_their_owner_declares_whatever_they_are(tmp_path: Path) -> None:
    """A record more or less moves neither the number nor the sample rate nor the noise."""
    said = []
    for root, count in ((tmp_path / "some", 12), (tmp_path / "one less", 11)):
        federation = private_federation(root, "dp-sgd", clients=1, examples=(count,))
        rewrite_data_owner(federation.data_owner_directories[0], f"declared_records = {count}", "declared_records = 10")
        said.append(statement_of(part(federation)))
    assert [one.num_examples for one in said] == [10, 10]
    first, second = (one.privacy for one in said)
    assert first is not None and second is not None
    assert first.sample_rate == second.sample_rate == federation.settings.batch_size / 10
    assert first.parameters == second.parameters


def write_records(federation: Federation, texts: Sequence[str]) -> None:
    """Gives the one data owner other records, and the ledger of these."""
    (directory,) = federation.data_owner_directories
    with gzip.open(directory / "train.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    shutil.rmtree(directory / "ledger")
    create_own_ledger(read_data_owner_file(directory), now=NOW)


@pytest.mark.parametrize("mechanism", ["dp-sgd", "dpzero", "update-gaussian"])
def test_records_of_which_the_tokenizer_makes_nothing_count_and_only_their_owner_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mechanism: str
) -> None:
    federation = private_federation(tmp_path, mechanism, clients=1)
    write_records(federation, ["", "the film is good", ""])
    said = statement_of(part(federation, batch_size=2))
    assert said.num_examples == 8, "as declared"
    assert "makes nothing of 2 of 3 records" in capsys.readouterr().err


def test_a_round_in_which_nothing_can_be_encoded_is_like_any_other(tmp_path: Path) -> None:
    federation = private_federation(tmp_path, "update-gaussian", clients=1)
    write_records(federation, ["", ""])
    assert statement_of(part(federation)).privacy is not None


def test_a_record_longer_than_the_emulator_reads_is_cut_under_a_mechanism() -> None:
    emulator = tiny_emulator()
    records = [TextRecord("the film is good " * 200), TextRecord("the story")]
    long, short = private_examples(records, emulator, max_tokens=2_000)
    assert len(long.token_ids) == emulator.model.config.max_position_embeddings > len(short.token_ids)


def test_the_way_to_the_gradients_is_said_once_a_round_in_the_data_owner_s_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    federation = private_federation(tmp_path, "dp-sgd", clients=1)
    rewrite_data_owner(federation.data_owner_directories[0], "device =", "gradient_checkpointing = true\ndevice =")
    part(federation)
    part(federation, nonce="b" * 64)
    said = [line for line in capsys.readouterr().err.splitlines() if "dp-sgd" in line]
    assert len(said) == 1
    assert said[0].startswith("round 1, dp-sgd: one example at a time: activations are recomputed going backward")


def test_s23_a_ledger_that_went_back_is_noticed_by_the_head_that_the_server_saw(tmp_path: Path) -> None:
    """All of the data owner's disk is restored, mirror and head file included: nobody else can know."""
    federation = private_federation(tmp_path / "federation", "dp-sgd", clients=1)
    ledger = federation.data_owner_directories[0] / "ledger"
    shutil.copytree(ledger, tmp_path / "backup")
    said = statement_of(part(federation)).privacy
    assert said is not None
    shutil.rmtree(ledger)
    shutil.copytree(tmp_path / "backup", ledger)
    with pytest.raises(LedgerError, match="older copy") as refused:
        part(federation, round=2, ledger_head=said.ledger_head)
    assert (refused.value.line, refused.value.exit_code) == (2, 3)
    assert not any(isinstance(entry, Reserved) for entry in ledger_entries(federation))


def test_a_ledger_that_went_on_has_every_head_that_the_server_saw(tmp_path: Path) -> None:
    federation = private_federation(tmp_path, "dp-sgd", clients=1)
    said = statement_of(part(federation)).privacy
    assert said is not None
    part(federation, round=2, ledger_head=said.ledger_head)
    assert sum(isinstance(entry, Committed) for entry in ledger_entries(federation)) == 2


def files_in(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


DAMAGES: list[tuple[Callable[[list[bytes]], list[bytes]], int]] = [
    (lambda lines: [lines[0], lines[1].replace(b'"round":1', b'"round":7'), *lines[2:]], 2),  # tampered with
    (lambda lines: [*lines[:3], lines[3][:40]], 4),  # truncated within a line
    (lambda lines: lines[:2], 3),  # truncated behind a line
    (lambda lines: [], 1),
]
"""What was done to a ledger of five lines, and the line at fault."""


def test_a_client_whose_ledger_was_damaged_releases_nothing_and_its_owner_alone_learns_the_line(tmp_path: Path) -> None:
    federation = private_federation(tmp_path, "dp-sgd", clients=1)
    part(federation)
    part(federation, round=2)
    (directory,) = federation.data_owner_directories
    ledger, log = directory / "ledger", directory / FAILURE_LOG
    whole = (ledger / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    grid = InProcessGrid(app, [{"data-owner": str(directory)}])
    for change, line in DAMAGES:
        (ledger / "ledger.jsonl").write_bytes(b"".join(change(whole)))
        before = files_in(ledger)
        for number in (2, 3):  # one that was released, whose bytes are still there, and a new one
            asked = instructions(federation, round=number, nonce=f"{number:064x}")
            with pytest.raises(LedgerError) as stopped:
                take_part(directory, asked, SHELF, now=NOW)
            assert stopped.value.line == line
            (reply,) = grid.send_and_receive([Message(to_records(asked), next(iter(grid.get_node_ids())), "train")])
            answer = from_records(reply.content)
            refusal = decode_statement(claimed(answer.statement), Refusal)
            assert refusal == Refusal(nonce=f"{number:064x}", code="privacy.ledger"), "a code and no text"
            assert answer.tensors == b"" and str(directory) not in str(reply)
            said = [text for text in log.read_text().splitlines() if text.startswith("scaleot_core.errors.LedgerError")]
            assert len(said) == 1
            assert f"privacy ledger {ledger}, line {line}: " in said[0]
            log.unlink()
        assert files_in(ledger) == before
