import pytest

from scaleot_core.compression.adapter_rule import AdapterRule, adapter_layers
from scaleot_core.errors import ModelError

BEST_OF_BLOCKS = (AdapterRule.SPREAD_BY_IMPORTANCE, AdapterRule.GRADIENT)
SCORES = [0.9, 0.1, 0.5, 0.2, 0.8, 0.3, 0.7, 0.4]


@pytest.mark.parametrize(
    ("rule", "count", "expected"),
    [
        (AdapterRule.MOST_IMPORTANT, 3, {0, 4, 6}),
        (AdapterRule.ENDS, 2, {0, 7}),
        (AdapterRule.ENDS, 3, {0, 1, 7}),
        (AdapterRule.ENDS, 4, {0, 1, 6, 7}),
        (AdapterRule.SPREAD, 3, {2, 4, 6}),
        (AdapterRule.SPREAD, 1, {4}),
        (AdapterRule.SPREAD, 8, set(range(8))),
        *((rule, 4, {0, 2, 4, 6}) for rule in BEST_OF_BLOCKS),
        *((rule, 3, {0, 4, 6}) for rule in BEST_OF_BLOCKS),
        *((rule, 1, {0}) for rule in BEST_OF_BLOCKS),
        *((rule, 8, set(range(8))) for rule in BEST_OF_BLOCKS),
    ],
)
def test_the_adapter_rules(rule: AdapterRule, count: int, expected: set[int]) -> None:
    assert adapter_layers(rule, count, 8, SCORES) == expected


def test_spread_of_four_over_thirty_layers() -> None:
    assert adapter_layers(AdapterRule.SPREAD, 4, 30, None) == {6, 12, 18, 24}


def test_spread_gives_as_many_layers_as_asked_for_at_every_depth() -> None:
    for total in range(1, 40):
        for count in range(1, total + 1):
            assert len(adapter_layers(AdapterRule.SPREAD, count, total, None)) == count


@pytest.mark.parametrize("count", [0, 9])
def test_more_adapter_layers_than_layers_are_refused(count: int) -> None:
    with pytest.raises(ModelError, match=r"1 to 8.*got"):
        adapter_layers(AdapterRule.SPREAD, count, 8, None)


@pytest.mark.parametrize("rule", [AdapterRule.MOST_IMPORTANT, *BEST_OF_BLOCKS])
@pytest.mark.parametrize("scores", [None, SCORES[:7]])
def test_a_rule_that_needs_scores_refuses_to_go_without(rule: AdapterRule, scores: list[float] | None) -> None:
    with pytest.raises(ModelError, match="needs a score for each of 8 layers"):
        adapter_layers(rule, 2, 8, scores)
