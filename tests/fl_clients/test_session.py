from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from fl_clients.introduction import introduce
from fl_clients.policy import read_data_owner_file
from fl_clients.session import EmulatorShelf, take_part
from fl_server.owner import INITIAL_ADAPTER_FILE
from scaleot_core.adapters.spec import AdapterKind, AdapterSpec
from scaleot_core.bundle import generate_signing_key, save_verifying_key
from scaleot_core.bundle.envelope import sign_statement
from scaleot_core.errors import (
    DataError,
    InstructionsRefusedError,
    MalformedStatementError,
    MalformedTensorsError,
    ModelError,
    Reason,
    ScaleOTError,
    VerificationError,
)
from scaleot_core.federation.messages import (
    Instructions,
    Introduction,
    IntroductionRequest,
    Payload,
    UpdateStatement,
    digest_of,
)
from scaleot_core.federation.signing import open_signed, payload_type_of
from scaleot_core.federation.validation import AdapterSchema, decode_tensors, encode_tensors
from tests.support.federations import END, Federation, build_federation, rewrite_data_owner, server_key

NOW = datetime.now(UTC)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return build_federation(tmp_path, clients=2)


def request(federation: Federation, client: int = 0, *, tensors: bytes | None = None, **changes: Any) -> Payload:
    blob = (federation.owner_directory / INITIAL_ADAPTER_FILE).read_bytes() if tensors is None else tensors
    settings = federation.settings
    fields = {
        "run": settings.run,
        "round": 1,
        "attempt": 1,
        "nonce": "a" * 64,
        "client": f"clinic-{client}",
        "base_sha256": digest_of(blob),
        "bundle_digest": settings.bundle_digest,
        "adapter": settings.adapter,
        "local_steps": 2,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "optimizer": "adamw",
        "max_tokens": 32,
        "seed": 0,
    }
    return federation.ask(Instructions(**{**fields, **changes}), blob)


def part(federation: Federation, payload: Payload, *, client: int = 0, now: datetime = NOW) -> Payload:
    return take_part(federation.data_owner_directories[client], payload, EmulatorShelf(), now=now)


def test_a_data_owner_introduces_itself_by_name_and_nothing_else(federation: Federation) -> None:
    question = federation.ask(IntroductionRequest(run="run-1", nonce="a" * 64))
    answer = introduce(federation.data_owner_directories[1], question, now=NOW)
    assert open_signed(answer.statement, Introduction, federation.members["clinic-1"]) == Introduction(
        run="run-1", nonce="a" * 64, client="clinic-1"
    )
    assert answer.tensors == b""


def test_the_update_is_bound_to_its_request_and_says_what_was_done(federation: Federation) -> None:
    asked = request(federation, max_tokens=64)
    answer = part(federation, asked)
    statement = open_signed(answer.statement, UpdateStatement, federation.members["clinic-0"])
    assert (statement.run, statement.round, statement.nonce, statement.client) == ("run-1", 1, "a" * 64, "clinic-0")
    assert statement.base_sha256 == digest_of(asked.tensors)
    assert statement.bundle_digest == federation.settings.bundle_digest
    assert statement.update_sha256 == digest_of(answer.tensors)
    assert statement.num_examples == 8, "the sentences at hand, each in one piece"
    schema = AdapterSchema.of(federation.initial_adapter)
    update = decode_tensors(answer.tensors, schema)
    assert any(not torch.equal(update[name], federation.initial_adapter[name]) for name in update)


def test_the_same_request_gives_the_same_update_and_other_seeds_rounds_and_clients_another(
    federation: Federation,
) -> None:
    first = part(federation, request(federation))
    assert part(federation, request(federation, run="again")).tensors == first.tensors
    assert part(federation, request(federation, run="other", seed=1)).tensors != first.tensors
    assert part(federation, request(federation, round=2)).tensors != first.tensors


def test_the_emulator_is_opened_once_for_all_clients_and_left_as_it_was(tmp_path: Path) -> None:
    federation = build_federation(tmp_path, clients=4)
    shelf, lent = EmulatorShelf(), []
    for number, directory in enumerate(federation.data_owner_directories):
        own = read_data_owner_file(directory)
        with shelf.lend(own, federation.settings.bundle_digest, now=NOW) as emulator:
            lent.append(emulator)
            before = {name: tensor.clone() for name, tensor in emulator.model.state_dict().items()}
        take_part(directory, request(federation, number), shelf, now=NOW)
        after = lent[0].model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert not any(parameter.requires_grad for parameter in lent[0].model.parameters())
    assert all(emulator is lent[0] for emulator in lent)


def test_a_failed_training_leaves_the_shared_emulator_as_it_was(federation: Federation) -> None:
    shelf, directory = EmulatorShelf(), federation.data_owner_directories[0]
    with pytest.raises(MalformedTensorsError):
        take_part(directory, request(federation, tensors=encode_tensors({"x": torch.zeros(1)})), shelf, now=NOW)
    answer = take_part(directory, request(federation), shelf, now=NOW)
    assert answer.tensors == part(federation, request(federation, run="again")).tensors


def test_sharing_an_open_emulator_spares_no_client_its_own_checks(federation: Federation) -> None:
    shelf = EmulatorShelf()
    take_part(federation.data_owner_directories[0], request(federation), shelf, now=NOW)
    other = federation.data_owner_directories[1]
    grant = (federation.data_owner_directories[0] / "grant").read_bytes()
    (other / "grant").write_bytes(grant)
    with pytest.raises(VerificationError) as refused:
        take_part(other, request(federation, 1), shelf, now=NOW)
    assert refused.value.code == "grant.organisation"


def test_a_float32_client_widens_its_own_copy(federation: Federation) -> None:
    shelf = EmulatorShelf()
    rewrite_data_owner(federation.data_owner_directories[1], 'device = "cpu"', 'dtype = "float32"\ndevice = "cpu"')
    own = [read_data_owner_file(directory) for directory in federation.data_owner_directories]
    with shelf.lend(own[0], federation.settings.bundle_digest, now=NOW) as shipped:
        pass
    with shelf.lend(own[1], federation.settings.bundle_digest, now=NOW) as widened:
        assert widened is not shipped
        assert widened.model.dtype == torch.float32


def _another_owner(federation: Federation, directory: Path) -> None:
    (directory / "owner.pub").unlink()
    save_verifying_key(generate_signing_key().public, directory / "owner.pub")


def _anothers_grant(federation: Federation, directory: Path) -> None:
    (directory / "grant").write_bytes((federation.data_owner_directories[1] / "grant").read_bytes())


def _anothers_identity(federation: Federation, directory: Path) -> None:
    (directory / "identity.key").write_bytes((federation.data_owner_directories[1] / "identity.key").read_bytes())


def _changed_bundle(federation: Federation, directory: Path) -> None:
    bundle = read_data_owner_file(directory).bundle
    largest = max((path for path in bundle.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.chmod(0o600)
    largest.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (_another_owner, "certificate.signature"),
        (_anothers_grant, "grant.organisation"),
        (_anothers_identity, "grant.unwrap"),
        (_changed_bundle, "object.block"),
    ],
)
def test_what_does_not_verify_is_refused(
    federation: Federation, spoil: Callable[[Federation, Path], None], code: str
) -> None:
    spoil(federation, federation.data_owner_directories[0])
    with pytest.raises(VerificationError) as refused:
        part(federation, request(federation))
    assert refused.value.code == code


def test_an_expired_bundle_is_refused_even_when_it_is_open(federation: Federation) -> None:
    shelf, directory = EmulatorShelf(), federation.data_owner_directories[0]
    take_part(directory, request(federation), shelf, now=NOW)
    with pytest.raises(VerificationError, match="expired"):
        take_part(directory, request(federation, round=2), shelf, now=END + timedelta(seconds=1))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"bundle_digest": "d" * 64}, "instructions.bundle"),
        ({"base_sha256": "d" * 64}, "instructions.base"),
        ({"client": "clinic-1"}, "instructions.client"),
        ({"local_steps": 1_001}, "policy.local_steps"),
    ],
)
def test_instructions_for_something_else_are_refused(
    federation: Federation, changes: dict[str, Any], code: str
) -> None:
    with pytest.raises(InstructionsRefusedError) as refused:
        part(federation, request(federation, **changes))
    assert refused.value.code == code


@pytest.mark.parametrize(("value", "reason"), [(float("nan"), Reason.NONFINITE), (float("inf"), Reason.NONFINITE)])
def test_a_global_adapter_with_values_that_are_not_finite_is_refused(
    federation: Federation, value: float, reason: Reason
) -> None:
    state = {name: torch.full_like(tensor, value) for name, tensor in federation.initial_adapter.items()}
    with pytest.raises(MalformedTensorsError) as refused:
        part(federation, request(federation, tensors=encode_tensors(state)))
    assert refused.value.reason is reason


def test_an_adapter_in_a_layer_that_is_not_exact_is_refused(federation: Federation) -> None:
    spec = AdapterSpec(AdapterKind.LORA, (3,), 2, seed=0)  # replaced by a harmonizer
    with pytest.raises(ModelError, match="layer 3"):
        part(federation, request(federation, adapter=spec))


def test_training_that_diverges_is_not_sent(federation: Federation) -> None:
    rewrite_data_owner(
        federation.data_owner_directories[0], 'device = "cpu"', 'device = "cpu"\n[policy]\nmax_learning_rate = 1e38'
    )
    with pytest.raises(InstructionsRefusedError) as refused:
        part(federation, request(federation, learning_rate=1e38, optimizer="sgd", local_steps=4))
    assert refused.value.code == "training.diverged"


def test_a_bundle_of_another_owner_is_refused_whoever_asks(federation: Federation) -> None:
    _another_owner(federation, federation.data_owner_directories[0])
    own = read_data_owner_file(federation.data_owner_directories[0])
    lent = EmulatorShelf().lend(own, federation.settings.bundle_digest, now=NOW)
    with pytest.raises(VerificationError, match=r"bundle\.signature"), lent:
        pytest.fail("nothing may be lent")


def test_malformed_instructions_are_refused_even_if_they_are_signed(federation: Federation) -> None:
    asked = request(federation)
    malformed = sign_statement(b"{}", payload_type_of(asked.statement), server_key())
    with pytest.raises(MalformedStatementError):
        part(federation, replace(asked, statement=malformed))


def test_missing_data_is_a_data_error(federation: Federation) -> None:
    (federation.data_owner_directories[0] / "train.jsonl.gz").unlink()
    with pytest.raises(DataError):
        part(federation, request(federation))
    assert issubclass(DataError, ScaleOTError)
