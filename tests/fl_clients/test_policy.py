from pathlib import Path
from typing import Any

import pytest

from fl_clients.policy import DataOwnerFile, Policy, may_tell_steps, permit, read_data_owner_file
from scaleot_core.adapters.spec import AdapterKind, AdapterSpec
from scaleot_core.errors import InputError, InstructionsRefusedError, RunFileError
from scaleot_core.federation.messages import Instructions
from scaleot_core.privacy.noise_ranges import MOST_LMO_DIRECTIONS
from tests.support.private_updates import privacy_request

FILE = """
organisation = "Klinik Süd"
data = "train.jsonl"
bundle = "/srv/bundle"
grant = "grant"
identity_key = "identity.key"
owner_public_key = "owner.pub"

[policy]
max_local_steps = 50
"""


PRIVACY = '[privacy]\nepsilon = 1.0\ndelta = 1e-5\nmechanisms = ["dp-sgd"]\ndeclared_records = 9\n'


def own_file(directory: Path, text: str = FILE) -> DataOwnerFile:
    (directory / "data-owner.toml").write_text(text, encoding="utf-8")
    return read_data_owner_file(directory)


def instructions(**changes: Any) -> Instructions:
    rank = changes.pop("adapter_rank", 8)
    fields = {
        "run": "run-1",
        "round": 1,
        "attempt": 1,
        "nonce": "1" * 64,
        "client": "Klinik Süd",
        "base_sha256": "2" * 64,
        "bundle_digest": "3" * 64,
        "adapter": AdapterSpec(AdapterKind.LORA, (6,), rank, seed=5),
        "local_steps": 20,
        "batch_size": 8,
        "learning_rate": 5e-4,
        "optimizer": "adamw",
        "max_tokens": 256,
        "seed": 0,
    }
    return Instructions(**{**fields, **changes})


def test_the_file_is_read_and_its_paths_start_at_its_own_directory(tmp_path: Path) -> None:
    own = own_file(tmp_path)
    assert own.organisation == "Klinik Süd"
    assert own.data == tmp_path / "train.jsonl"
    assert own.bundle == Path("/srv/bundle")
    assert own.policy == Policy(max_local_steps=50)


@pytest.mark.parametrize(
    ("line", "privacy", "tells"),
    [
        ("", "", True),
        ("", PRIVACY, False),
        ("tells_steps = true", PRIVACY, True),
        ("tells_steps = false", PRIVACY, False),
        ("tells_steps = false", "", False),
    ],
)
def test_steps_are_told_under_a_mechanism_only_where_the_data_owner_says_so(
    tmp_path: Path, line: str, privacy: str, *, tells: bool
) -> None:
    own = own_file(tmp_path, FILE.replace("[policy]", f"{line}\n[policy]") + privacy)
    assert may_tell_steps(own) is tells


def test_every_fault_of_the_file_is_reported_together(tmp_path: Path) -> None:
    text = FILE.replace("max_local_steps = 50", 'max_local_steps = "many"\nmax_colour = 1') + "\n[data2]\n"
    with pytest.raises(RunFileError) as refused:
        own_file(tmp_path, text)
    faults = {fault.split(":")[0] for fault in refused.value.faults}
    assert faults == {"policy.max_local_steps", "policy.max_colour", "data2"}


@pytest.mark.parametrize("text", ["organisation = ", "\x00"])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"data-owner\.toml"):
        own_file(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data-owner\.toml"):
        read_data_owner_file(tmp_path)


def test_instructions_within_the_policy_are_permitted(tmp_path: Path) -> None:
    assert permit(own_file(tmp_path), instructions()).instructions == instructions()
    at_the_limit = instructions(learning_rate=0.1, local_steps=50, batch_size=128, max_tokens=4_096, adapter_rank=256)
    permit(own_file(tmp_path), at_the_limit)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"learning_rate": 0.11}, "policy.learning_rate"),
        ({"local_steps": 51}, "policy.local_steps"),
        ({"batch_size": 129}, "policy.batch_size"),
        ({"max_tokens": 4_097}, "policy.max_tokens"),
        ({"adapter_rank": 257}, "policy.adapter_rank"),
        ({"adapter_rank": -1}, "policy.adapter_rank"),
        ({"client": "Klinik Nord"}, "instructions.client"),
    ],
)
def test_instructions_beyond_the_policy_are_refused_with_a_code(
    tmp_path: Path, changes: dict[str, Any], code: str
) -> None:
    with pytest.raises(InstructionsRefusedError) as refused:
        permit(own_file(tmp_path), instructions(**changes))
    assert refused.value.code == code


def test_a_file_whose_mechanisms_hide_different_units_is_refused(tmp_path: Path) -> None:
    budget = '\n[privacy]\nepsilon = 8.0\ndelta = 1e-5\nmechanisms = ["dp-sgd", "{}"]\ndeclared_records = 9\n'
    assert own_file(tmp_path, FILE + budget.format("dpzero")).privacy is not None
    with pytest.raises(RunFileError, match="no ledger can hold both"):
        own_file(tmp_path, FILE + budget.format("update-gaussian"))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("delta = 1e-20", "privacy.delta"),
        ("noise_multiplier = 1e200", "privacy.noise_multiplier"),
        ("epsilon = 1000.0", "privacy.epsilon"),
        ("declared_records = 0", "privacy.declared_records"),
        ("declared_records = 9007199254740993", "privacy.declared_records"),
        ("", "privacy.declared_records"),
    ],
)
def test_a_budget_for_which_there_is_no_figure_is_refused_before_a_ledger_is_made_with_it(
    tmp_path: Path, line: str, fault: str
) -> None:
    values = {"epsilon": "epsilon = 8.0", "delta": "delta = 1e-5", "mechanisms": 'mechanisms = ["dp-sgd"]'}
    if line:
        values["declared_records"] = "declared_records = 9"
    values[line.partition(" ")[0]] = line
    with pytest.raises(RunFileError, match=fault):
        own_file(tmp_path, FILE + "\n[privacy]\n" + "\n".join(values.values()) + "\n")


def test_lmo_dp_beside_a_noise_multiplier_that_it_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="noise_multiplier: leave it out beside lmo-dp"):
        own_file(tmp_path, FILE + PRIVACY.replace("dp-sgd", "lmo-dp") + "noise_multiplier = 1.0\n")


def test_more_directions_than_lmo_dp_takes_are_the_servers_fault(tmp_path: Path) -> None:
    own = own_file(
        tmp_path, FILE + '\n[privacy]\nepsilon = 8.0\ndelta = 1e-5\nmechanisms = ["lmo-dp"]\ndeclared_records = 9\n'
    )
    permit(own, instructions(privacy=privacy_request("lmo-dp", num_directions=MOST_LMO_DIRECTIONS)))
    with pytest.raises(InstructionsRefusedError) as refused:
        permit(own, instructions(privacy=privacy_request("lmo-dp", num_directions=MOST_LMO_DIRECTIONS + 1)))
    assert refused.value.code == "policy.privacy"
