import pytest

from scaleot_core.compression.plan import (
    AdapterRule,
    LayerPlan,
    LayerRole,
    PlannedLayer,
    adapter_layers,
    plan_layers,
    plan_uniform,
    uniform_positions,
)
from scaleot_core.errors import ModelError

SCORES = [0.9, 0.1, 0.5, 0.2, 0.8, 0.3, 0.7, 0.4]


def plan(**changes: object) -> LayerPlan:
    settings = {
        "num_adapter_layers": 2,
        "adapter_rule": AdapterRule.MOST_IMPORTANT,
        "replaced_layer_share": 0.5,
        "removed_rank_share": 0.8,
        **changes,
    }
    return plan_layers(SCORES, **settings)  # type: ignore[arg-type]


def test_a_hand_computed_plan() -> None:
    a, k, r = LayerRole.ADAPTER, LayerRole.KEPT, LayerRole.REPLACED
    got = plan()
    assert [layer.role for layer in got.layers] == [a, r, k, r, a, r, k, k]
    assert [round(layer.kept_rank_share, 9) for layer in got.layers] == [1, 1, 0.2, 1, 1, 1, 0.2, 0.2]
    assert got.adapter_layers == (0, 4)


def test_alpha_and_beta_at_their_ends() -> None:
    nothing = plan(replaced_layer_share=0.0, removed_rank_share=0.0)
    assert not nothing.indices(LayerRole.REPLACED)
    assert all(layer.kept_rank_share == 1 for layer in nothing.layers)
    everything = plan(replaced_layer_share=1.0)
    assert not everything.indices(LayerRole.KEPT)


def test_the_replaced_share_is_rounded_down_and_immune_to_binary_fractions() -> None:
    assert len(plan(replaced_layer_share=0.34).indices(LayerRole.REPLACED)) == 2
    scores = [0.0] * 12
    got = plan_layers(
        scores, num_adapter_layers=2, adapter_rule=AdapterRule.ENDS, replaced_layer_share=0.3, removed_rank_share=0.0
    )
    assert len(got.indices(LayerRole.REPLACED)) == 3


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
    ],
)
def test_the_adapter_rules(rule: AdapterRule, count: int, expected: set[int]) -> None:
    assert adapter_layers(SCORES, count, rule) == expected


def test_spread_of_four_over_thirty_layers() -> None:
    assert adapter_layers([0.0] * 30, 4, AdapterRule.SPREAD) == {6, 12, 18, 24}


def test_spread_gives_as_many_layers_as_asked_for_at_every_depth() -> None:
    for total in range(1, 40):
        for count in range(1, total + 1):
            assert len(adapter_layers([0.0] * total, count, AdapterRule.SPREAD)) == count


@pytest.mark.parametrize("count", [0, 9])
def test_more_adapter_layers_than_layers_are_refused(count: int) -> None:
    with pytest.raises(ModelError, match=r"1 to 8.*got"):
        plan(num_adapter_layers=count)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares_outside_zero_to_one_are_refused(share: float) -> None:
    with pytest.raises(ModelError, match="0 to 1"):
        plan(replaced_layer_share=share)
    with pytest.raises(ModelError, match="0 to 1"):
        plan(removed_rank_share=share)


def test_uniform_keeps_the_published_layers_of_opt_1_3b() -> None:
    """Offsite-tuning's 2-8-2 of 24 layers, by the middle's own indices: the published list."""
    got = plan_uniform(24, num_adapter_layers=4, adapter_rule=AdapterRule.ENDS, dropped_layer_share=12 / 20)
    assert got.adapter_layers == (0, 1, 22, 23)
    assert got.indices(LayerRole.KEPT) == (2, 5, 7, 10, 13, 16, 18, 21)


def test_uniform_positions_hold_both_ends() -> None:
    assert uniform_positions(20, 8)[0] == 0
    assert uniform_positions(20, 8)[-1] == 19
    assert uniform_positions(5, 1) == [0]
    assert uniform_positions(5, 0) == []
    assert uniform_positions(5, 5) == [0, 1, 2, 3, 4]


def test_uniform_refuses_a_rule_that_needs_scores() -> None:
    with pytest.raises(ModelError, match="computes no importance"):
        plan_uniform(8, num_adapter_layers=2, adapter_rule=AdapterRule.MOST_IMPORTANT, dropped_layer_share=0.5)


def test_a_plan_goes_through_json_unchanged() -> None:
    assert LayerPlan.from_json(plan().to_json()) == plan()


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        [{}],
        [{"index": 0, "role": "king", "kept_rank_share": 1.0}],
        [{"index": 1, "role": "kept", "kept_rank_share": 1.0}],
        [{"index": 0, "role": "kept", "kept_rank_share": 2.0}],
        [{"index": "0", "role": "kept", "kept_rank_share": 1.0}],
    ],
)
def test_malformed_plans_are_refused(value: object) -> None:
    with pytest.raises(ModelError):
        LayerPlan.from_json(value)


def test_a_plan_must_name_every_layer_once_in_order() -> None:
    with pytest.raises(ModelError, match="every original layer index"):
        LayerPlan((PlannedLayer(1, LayerRole.KEPT), PlannedLayer(0, LayerRole.KEPT)))
