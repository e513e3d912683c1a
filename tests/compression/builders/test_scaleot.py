"""ScaleOT and its own ablation without harmonizers: one choice of layers by hand, two things done with it."""

import dataclasses

import pytest
import torch

from scaleot_core.compression.activation_rank import truncate_rank_in_output
from scaleot_core.compression.builders import BUILDERS, PublicKnowledge
from scaleot_core.compression.harmonizer import DroppedLayer, Harmonizer
from scaleot_core.compression.importance import ImportanceReport
from scaleot_core.compression.plan import LayerRole, RankTarget
from scaleot_core.compression.rank import kept_rank, projection_weight
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import SilentReporter
from tests.compression.builders.requests import emulator_request, random_blocks
from tests.compression.test_activation_rank import inputs_of_projections
from tests.compression.test_rank import effective_weight
from tests.support.importance import importance_settings
from tests.support.tiny_models import tiny_language_model

SCORES = (9.0, 2.0, -1.0, 5.0, -3.0, -9.0)
"""Layers 0 and 5 carry the adapter; of 1 to 4 the half with the lowest scores is 4 and 2, whatever 5 scores."""
RANK = 3


@pytest.fixture(scope="module")
def full() -> LanguageModel:
    return tiny_language_model("llama")


@pytest.fixture(scope="module")
def known(full: LanguageModel) -> PublicKnowledge:
    hidden = full.layout.hidden_size
    generator = torch.Generator().manual_seed(0)
    harmonizers = {}
    for index in range(full.layout.num_layers):
        harmonizers[f"{index}.down.weight"] = torch.randn(RANK, hidden, generator=generator)
        harmonizers[f"{index}.up.weight"] = torch.randn(hidden, RANK, generator=generator)
    report = ImportanceReport(SCORES, harmonizers, importance_settings(harmonizer_rank=RANK), (), ())
    return PublicKnowledge(random_blocks, lambda: report)


def test_scaleot_puts_the_learnt_harmonizers_of_the_least_important_layers_in_their_places(
    full: LanguageModel, known: PublicKnowledge
) -> None:
    emulator = BUILDERS["scaleot"](full, emulator_request(removed_rank_share=0.5), known, reporter=SilentReporter())
    adapter, kept, replaced = LayerRole.ADAPTER, LayerRole.KEPT, LayerRole.REPLACED
    assert [layer.role for layer in emulator.plan.layers] == [adapter, kept, replaced, kept, replaced, adapter]
    assert [layer.kept_rank_share for layer in emulator.plan.layers] == [1.0, 0.5, 1.0, 0.5, 1.0, 1.0]
    for index in (2, 4):
        stand_in = emulator.layout.layer(emulator.model, index)
        assert isinstance(stand_in, Harmonizer)
        assert torch.equal(stand_in.up.weight, known.importance().harmonizers[f"{index}.up.weight"])


def test_importance_drop_leaves_the_same_layers_out_and_the_others_whole(
    full: LanguageModel, known: PublicKnowledge
) -> None:
    request = emulator_request(removed_rank_share=0.5)
    emulator = BUILDERS["importance_drop"](full, request, known, reporter=SilentReporter())
    adapter, kept, dropped = LayerRole.ADAPTER, LayerRole.KEPT, LayerRole.DROPPED
    assert [layer.role for layer in emulator.plan.layers] == [adapter, kept, dropped, kept, dropped, adapter]
    assert {layer.kept_rank_share for layer in emulator.plan.layers} == {1.0}
    for index in (2, 4):
        assert isinstance(emulator.layout.layer(emulator.model, index), DroppedLayer)
    for index in (0, 1, 3, 5):
        mine, own = emulator.layout.layer(emulator.model, index), full.layout.layer(full.model, index)
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), own.parameters(), strict=True))


@pytest.mark.parametrize("builder", ["scaleot", "importance_drop"])
@pytest.mark.parametrize(("regroup", "gone"), [("random", (2, 4)), ("fixed", (1, 2))])
def test_only_scores_of_fixed_groups_are_compared_within_a_group(
    full: LanguageModel, known: PublicKnowledge, builder: str, regroup: str, gone: tuple[int, ...]
) -> None:
    """In pairs of neighbours layer 1 is the first of its group to go, layer 2 of the next, and layer 4 comes third."""
    settings = importance_settings(harmonizer_rank=RANK, regroup=regroup, group_size=2)
    report = dataclasses.replace(known.importance(), settings=settings)
    public = dataclasses.replace(known, importance=lambda: report)
    plan = BUILDERS[builder](full, emulator_request(), public, reporter=SilentReporter()).plan
    assert plan.indices(LayerRole.REPLACED) + plan.indices(LayerRole.DROPPED) == gone


@pytest.mark.parametrize(("builder", "reads_importance"), [("scaleot", True), ("importance_drop", False)])
def test_a_controls_scores_choose_the_layers_in_place_of_the_learnt_ones(
    full: LanguageModel, known: PublicKnowledge, builder: str, reads_importance: bool
) -> None:
    """Of layers 1 to 4 the two lowest by the control are 3 and 1, also where learnt scores compare within groups."""
    settings = importance_settings(harmonizer_rank=RANK, regroup="fixed", group_size=2)
    report = dataclasses.replace(known.importance(), settings=settings)
    read = []

    def importance() -> ImportanceReport:
        read.append(report)
        return report

    request = emulator_request(control_scores=(0.0, 0.2, 0.4, 0.1, 0.3, 0.0))
    public = dataclasses.replace(known, importance=importance)
    plan = BUILDERS[builder](full, request, public, reporter=SilentReporter()).plan
    assert plan.indices(LayerRole.REPLACED) + plan.indices(LayerRole.DROPPED) == (1, 3)
    assert bool(read) == reads_importance, "harmonizers come with the learnt scores; dropping needs neither"


@pytest.mark.parametrize(
    ("target", "attention", "feed_forward"),
    [(RankTarget.ATTENTION, 0.5, 1.0), (RankTarget.FEED_FORWARD, 1.0, 0.5), (RankTarget.BOTH, 0.5, 0.5)],
)
def test_scaleot_reduces_the_rank_of_what_the_target_names(
    full: LanguageModel, known: PublicKnowledge, target: RankTarget, attention: float, feed_forward: float
) -> None:
    request = emulator_request(removed_rank_share=0.5, rank_target=target)
    plan = BUILDERS["scaleot"](full, request, known, reporter=SilentReporter()).plan
    for index in (1, 3):
        assert plan.layers[index].kept_rank_share == attention
        assert plan.layers[index].kept_feed_forward_rank_share == feed_forward


@pytest.mark.parametrize("target", RankTarget)
def test_by_activations_the_kept_maps_are_nearest_in_output_on_the_text_that_was_asked_for(
    full: LanguageModel, known: PublicKnowledge, target: RankTarget
) -> None:
    request = emulator_request(
        removed_rank_share=0.5, rank_target=target, rank_criterion="activation", num_blocks=3, batch_size=2
    )
    emulator = BUILDERS["scaleot"](full, request, known, reporter=SilentReporter())
    attention, feed_forward = full.layout.attention_linears, full.layout.mlp_linears
    names = {RankTarget.ATTENTION: attention, RankTarget.FEED_FORWARD: feed_forward}.get(
        target, (*attention, *feed_forward)
    )
    for (index, name), x in inputs_of_projections(full, known.blocks()[:3], names).items():
        weight = projection_weight(full.layout.layer(full.model, index).get_submodule(name))
        up, down = truncate_rank_in_output(weight, x.T @ x, kept_rank(*weight.shape, 0.5))
        got = effective_weight(emulator.layout.layer(emulator.model, index).get_submodule(name), weight.shape[1])
        torch.testing.assert_close(got, up @ down, rtol=1e-3, atol=1e-3)
