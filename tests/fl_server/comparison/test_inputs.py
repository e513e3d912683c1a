"""Every setting of a run file against the results of a comparison: which of them it may change, and must be kept by."""

from collections.abc import Iterator
from typing import Any, get_args, get_origin

import pytest
from pydantic.fields import FieldInfo

from fl_server.comparison.inputs import ResultInputs
from scaleot_core.run_file import RunFile, Section

INPUTS = ResultInputs("model", "tokenizer", "cpu", digest_of=lambda source: source)
RUN = RunFile.model_validate(
    {
        "data": {"train": "train", "test": "test", "validation": "validation"},
        "privacy": {"mechanism": "dpzero"},
        "model_privacy": {"strong_emulator_steps": 2, "healing_steps": [0]},
    }
)
TUNED, REFERENCE, ATTACKS = "tuned", "full_fine_tuning", "attacks"
MEASURED = {"zero_shot", "emulator_zero_shot", REFERENCE, TUNED, ATTACKS}
EVERYTHING = {"emulator", *MEASURED}
BY_SECTION = {
    "importance": {"emulator"},
    "emulator": {"emulator"},
    "adapter": {REFERENCE, TUNED},
    "data": {REFERENCE, TUNED, ATTACKS},
    "federation": {REFERENCE, TUNED},
    "privacy": {TUNED},
    "evaluation": {REFERENCE},
    "model_privacy": {ATTACKS},
}
"""The results that any setting of a section may change. An emulator's own stand under its digest."""
BY_SETTING: dict[str, set[str]] = {
    "seed": {REFERENCE, TUNED, ATTACKS},
    "model.dtype": EVERYTHING,
    "model.compiled": EVERYTHING,
    "model.source": set(),  # the model's and the tokenizer's digests stand for it
    "model.device": set(),  # where the model came to stand counts
    "importance.gradient_checkpointing": set(),
    "importance.text": {"emulator", ATTACKS},
    "importance.batch_size": {"emulator", ATTACKS},
    "importance.block_tokens": {"emulator", ATTACKS},
    "data.test": MEASURED,
    "data.validation": {REFERENCE, TUNED},
    "federation.gradient_checkpointing": set(),
    **{
        f"federation.{name}": {REFERENCE, TUNED, ATTACKS}
        for name in ("clients", "partition", "partition_alpha", "batch_size", "max_tokens")
    },
    "evaluation.examples": MEASURED,
    "model_privacy.disclosure_record": set(),
}
"""Those that change more, or nothing."""
NO_RESULT = {"canary", "compare", "serve"}
"""Sections that a comparison refuses, is made of, or does not look at."""


def another(value: Any, field: FieldInfo) -> Any:
    if isinstance(value, bool):
        return not value
    if get_origin(field.annotation) and get_args(field.annotation) and isinstance(value, str):
        return next(one for one in get_args(field.annotation) if one != value)
    if isinstance(value, list):
        return [*value, 7]
    return value + "-other" if isinstance(value, str) else value + 1


def settings() -> Iterator[tuple[str, RunFile]]:
    """Yields every setting's name with a run file in which that alone is another."""
    yield "seed", RUN.model_copy(update={"seed": RUN.seed + 1})
    for name, value in RUN:
        if isinstance(value, Section) and name not in NO_RESULT:
            for key, field in type(value).model_fields.items():
                changed = value.model_copy(update={key: another(getattr(value, key), field)})
                yield f"{name}.{key}", RUN.model_copy(update={name: changed})


def inputs_of(run: RunFile) -> dict[str, Any]:
    return {
        "emulator": INPUTS.emulator(run),
        "zero_shot": INPUTS.zero_shot(run),
        "emulator_zero_shot": INPUTS.emulator_zero_shot(run, "digest"),
        REFERENCE: INPUTS.full_fine_tuning(run),
        TUNED: INPUTS.tuned(run, "digest"),
        ATTACKS: INPUTS.attacks(run, "digest"),
    }


CASES = list(settings())


@pytest.mark.parametrize(("name", "run"), CASES, ids=[name for name, _ in CASES])
def test_a_setting_stands_in_the_inputs_of_every_result_that_it_may_change(name: str, run: RunFile) -> None:
    before, after = inputs_of(RUN), inputs_of(run)
    changed = {result for result in before if before[result] != after[result]}
    assert changed == BY_SETTING.get(name, BY_SECTION.get(name.partition(".")[0]))


def test_every_exception_is_a_setting_that_there_is() -> None:
    assert BY_SETTING.keys() <= {name for name, _ in CASES}
    assert {name for name, value in RUN if isinstance(value, Section)} == {*BY_SECTION, "model", *NO_RESULT}


@pytest.mark.parametrize("fact", ["model", "tokenizer", "device"])
def test_another_model_tokenizer_or_device_makes_every_result_another(fact: str) -> None:
    facts = {"model": "model", "tokenizer": "tokenizer", "device": "cpu", fact: "other"}
    other = ResultInputs(**facts, digest_of=lambda source: source)
    assert other.emulator(RUN) != INPUTS.emulator(RUN)
    assert other.zero_shot(RUN) != INPUTS.zero_shot(RUN)
    assert all(
        getattr(other, name)(RUN, "digest") != getattr(INPUTS, name)(RUN, "digest")
        for name in ("emulator_zero_shot", "tuned", "attacks")
    )
    assert other.full_fine_tuning(RUN) != INPUTS.full_fine_tuning(RUN)


def test_another_emulator_makes_another_result_of_all_that_is_measured_on_one() -> None:
    for name in ("emulator_zero_shot", "tuned", "attacks"):
        assert getattr(INPUTS, name)(RUN, "digest") != getattr(INPUTS, name)(RUN, "other")
