from itertools import permutations

import pytest
import torch

from scaleot_core.compression.activation_rank import nearest_in_output
from scaleot_core.compression.emulator import describe_emulator
from scaleot_core.compression.plan import LayerPlan, LayerRole, PlannedLayer
from scaleot_core.compression.rank import ProjectionBlock, truncate_rank
from scaleot_core.errors import ModelError
from scaleot_core.model_privacy.disclosure import (
    DisclosedLayer,
    DisclosureLevel,
    Revealed,
    disclosed_union,
    verbatim_share,
    what_would_be_new,
)
from scaleot_core.model_privacy.parameter_counts import LayerParameters, ParameterCounts, count_parameters
from scaleot_core.progress import SilentReporter
from tests.model_privacy.taught import emulator_of
from tests.support.tiny_models import FAMILY_CONFIGS, tiny_language_model

ADAPTER, KEPT, REPLACED, DROPPED = LayerRole.ADAPTER, LayerRole.KEPT, LayerRole.REPLACED, LayerRole.DROPPED
NOTHING, STAND_IN = DisclosureLevel.NOTHING, DisclosureLevel.STAND_IN
COMPRESSED, EXACT = DisclosureLevel.COMPRESSED, DisclosureLevel.EXACT
COUNTS = ParameterCounts((LayerParameters(attention=40, feed_forward=100, other=10),) * 4, outside=200)


def plan(*rows: tuple[LayerRole, float] | LayerRole) -> LayerPlan:
    pairs = [row if isinstance(row, tuple) else (row, 1.0) for row in rows]
    return LayerPlan(tuple(PlannedLayer(i, role, share) for i, (role, share) in enumerate(pairs)))


def of(plan: LayerPlan, basis: str = "weights") -> Revealed:
    return Revealed(plan, basis)


FIRST = of(plan(ADAPTER, (KEPT, 0.5), REPLACED, DROPPED))
SECOND = of(plan((KEPT, 0.2), (KEPT, 0.8), DROPPED, REPLACED))


def test_one_plan_reveals_what_its_roles_say() -> None:
    assert disclosed_union([FIRST], 4) == (
        DisclosedLayer(0, EXACT, 1.0, 1.0),
        DisclosedLayer(1, COMPRESSED, 0.5, 1.0),
        DisclosedLayer(2, STAND_IN),
        DisclosedLayer(3, NOTHING),
    )
    assert disclosed_union([of(plan(KEPT, KEPT, KEPT, KEPT))], 4)[2].level is EXACT


def test_the_union_holds_the_most_that_any_plan_of_one_basis_reveals() -> None:
    union = disclosed_union([FIRST, SECOND], 4)
    assert union == (
        DisclosedLayer(0, EXACT, 1.0, 1.0),
        DisclosedLayer(1, COMPRESSED, 0.8, 1.0),
        DisclosedLayer(2, STAND_IN),
        DisclosedLayer(3, STAND_IN),
    )


def test_the_union_does_not_depend_on_the_order_and_a_repeated_emulator_adds_nothing() -> None:
    emulators = [FIRST, SECOND, of(plan(DROPPED, ADAPTER, DROPPED, DROPPED)), of(FIRST.plan, "a text")]
    unions = {disclosed_union(order, 4) for order in permutations(emulators)}
    assert len(unions) == 1
    assert disclosed_union([*emulators, FIRST], 4) in unions


def test_exact_attention_in_one_emulator_and_an_exact_rest_in_another_are_an_exact_layer() -> None:
    low_attention = of(LayerPlan((PlannedLayer(0, KEPT, 0.5),)))
    low_rest = of(LayerPlan((PlannedLayer(0, KEPT, kept_feed_forward_rank_share=0.5, kept_channel_share=0.5),)))
    assert disclosed_union([low_rest], 1) == (DisclosedLayer(0, COMPRESSED, 1.0, 0.25),)
    assert disclosed_union([low_attention, low_rest], 1) == (DisclosedLayer(0, EXACT, 1.0, 1.0),)


def test_shares_of_several_bases_add_up_and_two_halves_are_the_whole() -> None:
    half, third = plan((KEPT, 0.5)), plan((KEPT, 0.3))
    assert disclosed_union([of(half), of(third)], 1) == (DisclosedLayer(0, COMPRESSED, 0.5, 1.0),)
    assert disclosed_union([of(half), of(third, "a text")], 1) == (DisclosedLayer(0, COMPRESSED, 0.8, 1.0),)
    assert disclosed_union([of(half, "one"), of(half, "other"), of(third)], 1) == (DisclosedLayer(0, EXACT, 1.0, 1.0),)
    [new] = what_would_be_new([of(half, "one")], of(half, "other"))
    assert (new.before.level, new.after.level) == (COMPRESSED, EXACT)
    assert disclosed_union([of(plan(REPLACED), "one"), of(plan(DROPPED), "other")], 1) == (DisclosedLayer(0, STAND_IN),)


@pytest.mark.parametrize("criteria", [("activation", "activation"), ("weight", "activation")])
def test_two_emulators_at_half_the_rank_give_the_matrices_back_which_is_why_bases_add_up(
    criteria: tuple[str, str],
) -> None:
    full = tiny_language_model("llama", layers=3)
    texts = [torch.randint(3, 300, (16, 32), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    held = []
    for criterion, text in zip(criteria, texts, strict=True):
        names = full.layout.attention_linears
        nearest = nearest_in_output(full, text, names, batch_size=4, reporter=SilentReporter())
        factorize = nearest if criterion == "activation" else lambda _, weight, rank: truncate_rank(weight, rank)
        weight = full.layout.layer(full.model, 1).self_attn.q_proj.weight
        held.append(factorize(ProjectionBlock(1, "self_attn.q_proj"), weight, 8))
    stacked = torch.cat([torch.linalg.qr(up.double()).Q.T for up, _ in held])
    seen = torch.cat([torch.linalg.qr(up.double()).Q.T @ (up.double() @ down.double()) for up, down in held])
    recovered = torch.linalg.lstsq(stacked, seen).solution
    error = float((recovered - weight).norm() / weight.norm())
    alone = [float((up @ down - weight).norm() / weight.norm()) for up, down in held]
    assert min(alone) > 0.2 and error < 1e-2


def test_a_shared_layer_reveals_nothing_of_its_own() -> None:
    shared = of(LayerPlan((PlannedLayer(0, KEPT), PlannedLayer(1, LayerRole.SHARED, shared_from=0))))
    assert [layer.level for layer in disclosed_union([shared], 2)] == [EXACT, NOTHING]


def test_the_verbatim_share_is_counted_by_hand() -> None:
    assert COUNTS.total == 800
    assert verbatim_share(disclosed_union([FIRST], 4), COUNTS) == (200 + 150 + 110) / 800
    both = disclosed_union([FIRST, of(plan(DROPPED, DROPPED, ADAPTER, DROPPED))], 4)
    assert verbatim_share(both, COUNTS) == (200 + 150 + 110 + 150) / 800
    assert verbatim_share(disclosed_union([of(plan(KEPT, KEPT, KEPT, KEPT))], 4), COUNTS) == 1.0
    assert verbatim_share(disclosed_union([], 4), COUNTS) == 0.0


@pytest.mark.parametrize("model_type", list(FAMILY_CONFIGS))
def test_of_one_emulator_the_share_is_the_one_measured_tensor_by_tensor(model_type: str) -> None:
    full = tiny_language_model(model_type, layers=4)
    for each in (FIRST, SECOND, of(plan(ADAPTER, KEPT, KEPT, ADAPTER))):
        measured = describe_emulator(emulator_of(full, each.plan), full).verbatim_share
        assert verbatim_share(disclosed_union([each], 4), count_parameters(full)) == pytest.approx(measured, abs=1e-12)


def test_what_would_be_new_names_the_layers_of_which_more_would_leave() -> None:
    new = what_would_be_new([FIRST], SECOND)
    assert [(one.before.index, one.before.level, one.after.level) for one in new] == [
        (1, COMPRESSED, COMPRESSED),
        (3, NOTHING, STAND_IN),
    ]
    assert (new[0].before.attention_rank_share, new[0].after.attention_rank_share) == (0.5, 0.8)


def test_a_plan_within_what_is_out_reveals_nothing_new_and_without_a_record_all_is_new() -> None:
    assert what_would_be_new([FIRST, SECOND], FIRST) == ()
    assert what_would_be_new([FIRST], of(plan((KEPT, 0.9), (KEPT, 0.5), DROPPED, DROPPED))) == ()
    assert [one.after.index for one in what_would_be_new([], FIRST)] == [0, 1, 2]


def test_a_plan_of_another_number_of_layers_is_no_emulator_of_this_model() -> None:
    with pytest.raises(ModelError, match="a plan is for 4 layers, the model has 5"):
        disclosed_union([FIRST], 5)
    with pytest.raises(ModelError, match="layers"):
        what_would_be_new([FIRST], of(plan(ADAPTER)))


def test_shares_that_add_up_to_a_whole_matrix_but_for_binary_fractions_are_a_whole_matrix() -> None:
    three = [
        of(plan((KEPT, 1 - beta), KEPT, KEPT, KEPT), basis) for beta, basis in ((0.3, "a"), (0.8, "b"), (0.9, "c"))
    ]
    assert sum((1 - 0.3, 1 - 0.8, 1 - 0.9)) < 1
    union = disclosed_union(three, 4)
    assert union[0] == DisclosedLayer(0, EXACT, 1.0, 1.0)
    assert verbatim_share(union, COUNTS) == 1.0
    assert disclosed_union(three[:2], 4)[0].level is COMPRESSED
