import pytest

from scaleot_core.compression.plan import LayerPlan, LayerRole, PlannedLayer, RankTarget, plan_layers
from scaleot_core.errors import ModelError

SCORES = [0.9, 0.1, 0.5, 0.2, 0.8, 0.3, 0.7, 0.4]


def plan(**changes: object) -> LayerPlan:
    settings = {
        "adapter": {0, 4},
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


def test_scores_of_fixed_groups_are_compared_within_a_group_alone() -> None:
    scores = [0.1, 0.2, 0.3, 0.4, 9.0, 7.0, 8.0, 6.0]

    def replaced(share: float, group_size: int | None) -> tuple[int, ...]:
        planned = plan_layers(
            scores, adapter={1}, replaced_layer_share=share, removed_rank_share=0.0, group_size=group_size
        )
        return planned.indices(LayerRole.REPLACED)

    assert replaced(2 / 7, None) == (0, 2)
    assert replaced(2 / 7, 4) == (0, 7)
    assert replaced(5 / 7, 4) == (0, 2, 3, 5, 7), "the first of both, the second of both, the third of the first"
    assert replaced(1.0, 4) == (0, 2, 3, 4, 5, 6, 7)


def test_the_plan_compares_a_layer_left_over_with_the_group_it_learnt_in() -> None:
    """In a group of its own layer 4 would be the least important one of it, and go first."""
    scores = [0.1, 0.2, 0.3, 0.4, 9.0]
    planned = plan_layers(scores, adapter=(), replaced_layer_share=0.4, removed_rank_share=0.0, group_size=4)
    assert planned.indices(LayerRole.REPLACED) == (0, 1)


def test_alpha_and_beta_at_their_ends() -> None:
    nothing = plan(replaced_layer_share=0.0, removed_rank_share=0.0)
    assert not nothing.indices(LayerRole.REPLACED)
    assert all(layer.kept_rank_share == 1 for layer in nothing.layers)
    everything = plan(replaced_layer_share=1.0)
    assert not everything.indices(LayerRole.KEPT)


def test_the_replaced_share_is_rounded_down_and_immune_to_binary_fractions() -> None:
    assert len(plan(replaced_layer_share=0.34).indices(LayerRole.REPLACED)) == 2
    scores = [0.0] * 12
    got = plan_layers(scores, adapter={0, 11}, replaced_layer_share=0.3, removed_rank_share=0.0)
    assert len(got.indices(LayerRole.REPLACED)) == 3


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares_outside_zero_to_one_are_refused(share: float) -> None:
    with pytest.raises(ModelError, match="0 to 1"):
        plan(replaced_layer_share=share)
    with pytest.raises(ModelError, match="0 to 1"):
        plan(removed_rank_share=share)


@pytest.mark.parametrize(
    ("target", "attention", "feed_forward"),
    [(RankTarget.ATTENTION, 0.2, 1.0), (RankTarget.FEED_FORWARD, 1.0, 0.2), (RankTarget.BOTH, 0.2, 0.2)],
)
def test_the_rank_target_says_whose_rank_is_reduced(target: RankTarget, attention: float, feed_forward: float) -> None:
    kept = plan(rank_target=target).layers[2]
    assert kept.role is LayerRole.KEPT
    assert (kept.kept_rank_share, kept.kept_feed_forward_rank_share) == pytest.approx((attention, feed_forward))


def test_a_plan_goes_through_json_unchanged() -> None:
    assert LayerPlan.from_json(plan().to_json()) == plan()
    every_field = LayerPlan(
        (
            PlannedLayer(0, LayerRole.KEPT, 0.5, 0.25, 0.125),
            PlannedLayer(1, LayerRole.SHARED, shared_from=0),
            PlannedLayer(2, LayerRole.ADAPTER),
        )
    )
    assert LayerPlan.from_json(every_field.to_json()) == every_field


@pytest.mark.parametrize("source", [None, 0, 1, 7])
def test_a_shared_layer_names_a_kept_layer(source: int | None) -> None:
    with pytest.raises(ModelError, match="index of a kept layer"):
        LayerPlan((PlannedLayer(0, LayerRole.ADAPTER), PlannedLayer(1, LayerRole.SHARED, shared_from=source)))


def test_only_a_shared_layer_names_another() -> None:
    with pytest.raises(ModelError, match="stands with the role shared"):
        LayerPlan((PlannedLayer(0, LayerRole.KEPT), PlannedLayer(1, LayerRole.KEPT, shared_from=0)))


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
        [{"index": 0, "role": "kept", "kept_rank_share": 1.0, "colour": "red"}],
    ],
)
def test_malformed_plans_are_refused(value: object) -> None:
    with pytest.raises(ModelError):
        LayerPlan.from_json(value)


def test_a_plan_must_name_every_layer_once_in_order() -> None:
    with pytest.raises(ModelError, match="every original layer index"):
        LayerPlan((PlannedLayer(1, LayerRole.KEPT), PlannedLayer(0, LayerRole.KEPT)))
