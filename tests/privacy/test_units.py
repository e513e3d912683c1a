"""What an epsilon is about, in words and as JSON."""

import json

import pytest

from scaleot_core.privacy.units import DATA_SET_UNIT, RECORD_UNIT, PrivacyScope, scope_of


def test_the_words_after_an_epsilon_name_delta_unit_neighbours_and_sampling() -> None:
    about = scope_of(RECORD_UNIT, [0.25, 0.25]).at_delta(1e-5)
    assert about == (
        "at delta 1e-05 for one training record, neighbouring data sets by add/remove, "
        "Poisson sampling with secret coins at rate 0.25"
    )


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ([], "no release"),
        ([1.0, 1.0], "without sampling"),
        ([0.5, 1.0, 0.25], "Poisson sampling with secret coins at rate 0.25, 0.5, 1"),
        ([0.25, 0.250001], "Poisson sampling with secret coins at rate 0.25"),
        ([0.1, 0.2, 0.3, 0.4], "Poisson sampling with secret coins at rate 0.1 to 0.4"),
    ],
)
def test_a_few_rates_are_listed_and_of_many_the_ends_are_told(rates: list[float], words: str) -> None:
    assert scope_of(RECORD_UNIT, rates).sampling == words


def test_a_scope_is_found_again_among_other_figures() -> None:
    scope = scope_of(DATA_SET_UNIT, [1.0])
    assert PrivacyScope.from_json(json.loads(json.dumps({"epsilon": 2.0, **scope.to_json()}))) == scope
