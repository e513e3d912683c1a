from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scaleot_core.compression.builders import BUILDERS
from scaleot_core.compression.builders.crash import build, cluster_adjacent, neighbour_similarities, plan_crash
from scaleot_core.compression.emulator import Emulator, describe_emulator, read_emulator, write_emulator
from scaleot_core.compression.plan import LayerPlan, LayerRole
from scaleot_core.errors import ModelError
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import SilentReporter
from tests.compression.builders.requests import emulator_request, random_blocks, text_alone
from tests.support.tiny_models import FAMILY_CONFIGS, tiny_language_model

SILENT = SilentReporter()
IDS = random_blocks(2, seed=1)


def crash(full: LanguageModel) -> Emulator:
    """Two of the layers 1 to 4 stay, two share."""
    return build(full, emulator_request(), text_alone(random_blocks()), reporter=SILENT)


def with_identities(full: LanguageModel, *indices: int) -> LanguageModel:
    for index in indices:
        layer = full.layout.layer(full.model, index)
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    return full


def literal_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    return float((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def test_the_most_alike_neighbours_merge_until_there_are_few_enough() -> None:
    similarities = (0.9, 0.5, 0.95, 0.2, 0.7)
    assert cluster_adjacent(similarities, 6) == tuple(range(i, i + 1) for i in range(6))
    assert cluster_adjacent(similarities, 3) == (range(2), range(2, 4), range(4, 6))
    assert cluster_adjacent(similarities, 2) == (range(4), range(4, 6))
    assert cluster_adjacent(similarities, 1) == (range(6),)


def test_of_equally_alike_neighbours_the_first_merge() -> None:
    assert cluster_adjacent((1.0, 1.0, 1.0), 3) == (range(2), range(2, 3), range(3, 4))
    assert cluster_adjacent((1.0, 1.0, 1.0), 2) == (range(3), range(3, 4))


def test_merging_is_cutting_where_neighbours_are_least_alike() -> None:
    similarities = torch.rand(23, generator=torch.Generator().manual_seed(0)).tolist()
    for num_clusters in range(1, 25):
        lowest = sorted(range(23), key=similarities.__getitem__)[: num_clusters - 1]
        bounds = [0, *sorted(position + 1 for position in lowest), 24]
        expected = tuple(range(first, end) for first, end in pairwise(bounds))
        assert cluster_adjacent(similarities, num_clusters) == expected


@pytest.mark.parametrize("num_clusters", [0, 5, -1])
def test_an_impossible_number_of_clusters_is_refused(num_clusters: int) -> None:
    with pytest.raises(ModelError, match=f"4 layers form 1 to as many clusters, not {num_clusters}"):
        cluster_adjacent((0.1, 0.2, 0.3), num_clusters)


def test_the_plan_is_the_one_made_by_hand() -> None:
    """Adapter 4 and 7. Clusters {0, 1, 2}, {3, 5, 6}, which reaches across layer 4, and {8, 9}."""
    plan = plan_crash(10, {4, 7}, 5 / 8, (0.9, 0.8, 0.3, 0.99, 0.95, 0.4, 0.7))
    assert plan.adapter_layers == (4, 7)
    assert plan.indices(LayerRole.KEPT) == (1, 5, 9)
    assert plan.shared_from == {0: 1, 2: 1, 3: 5, 6: 5, 8: 9}
    assert plan.indices(LayerRole.SHARED) == (0, 2, 3, 6, 8)
    assert {layer.kept_rank_share for layer in plan.layers} == {1.0}


def test_the_nearest_kept_layer_may_be_another_clusters_and_a_tie_goes_to_the_deeper() -> None:
    """Clusters {0, ..., 6} and {7}: layer 5 is as far from 3 as from 7, layer 6 is nearer to 7."""
    plan = plan_crash(8, (), 6 / 8, (0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.1))
    assert plan.indices(LayerRole.KEPT) == (3, 7)
    assert plan.shared_from == {0: 3, 1: 3, 2: 3, 4: 3, 5: 7, 6: 7}


def test_the_share_rounds_down_as_with_the_other_builders() -> None:
    similarities = tuple(i / 20 for i in range(19))
    for share, kept in ((0.0, 20), (0.3, 14), (0.34, 14), (0.95, 1), (1.0, 0)):
        plan = plan_crash(24, {0, 1, 22, 23}, share, similarities)
        assert len(plan.indices(LayerRole.KEPT)) == kept
        assert len(plan.indices(LayerRole.DROPPED)) == (20 if kept == 0 else 0)
    assert plan_crash(2, {0, 1}, 0.5, ()).adapter_layers == (0, 1)


def test_similarities_of_another_number_of_layers_are_refused() -> None:
    with pytest.raises(ModelError, match="4 layers have 3 pairs of neighbours, got 5"):
        plan_crash(6, {0, 5}, 0.5, (0.5,) * 5)
    with pytest.raises(ModelError, match="removed_layer_share must be 0 to 1"):
        plan_crash(6, {0, 5}, 1.5, (0.5,) * 3)


def test_similarities_are_the_cka_of_averages_in_which_later_tokens_weigh_more() -> None:
    full, blocks = tiny_language_model("llama"), random_blocks()
    got = neighbour_similarities(full, (0, 1, 3, 4), blocks, batch_size=5, reporter=SILENT)
    states = full.model(blocks, output_hidden_states=True).hidden_states
    averages = {}
    for index in (0, 1, 3, 4):
        total = sum(t * states[index + 1][:, t - 1].double() for t in range(1, 13))
        averages[index] = total / sum(range(1, 13))
    expected = [literal_cka(averages[i], averages[j]) for i, j in ((0, 1), (1, 3), (3, 4))]
    assert got == pytest.approx(expected, rel=1e-5)


def test_layers_that_change_nothing_join_the_cluster_of_the_layer_before() -> None:
    full = with_identities(tiny_language_model("llama"), 2, 3)
    similarities = neighbour_similarities(full, range(6), random_blocks(), batch_size=4, reporter=SILENT)
    assert similarities[1:3] == pytest.approx((1, 1), abs=1e-9)
    assert max(similarities[0], *similarities[3:]) < 0.999
    plan = crash(full).plan
    assert plan.adapter_layers == (0, 5)
    assert plan.indices(LayerRole.KEPT) == (2, 4)
    assert plan.shared_from == {1: 2, 3: 4}


def test_too_little_text_is_refused() -> None:
    with pytest.raises(ModelError, match="at least 3 blocks"):
        neighbour_similarities(tiny_language_model("llama"), (1, 2), random_blocks(2), batch_size=4, reporter=SILENT)


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_a_shared_slot_computes_what_the_kept_layer_would_there(model_type: str) -> None:
    full = tiny_language_model(model_type)
    before = full.model(IDS).logits
    emulator = crash(full)
    assert torch.equal(full.model(IDS).logits, before)
    assert len(emulator.plan.shared_from) == 2
    for index, source in emulator.plan.shared_from.items():  # the full model with the weights copied over
        weights = full.layout.layer(full.model, source).state_dict()
        full.layout.layer(full.model, index).load_state_dict(weights)
    assert torch.equal(emulator.model(IDS).logits, full.model(IDS).logits)
    assert not torch.allclose(emulator.model(IDS).logits, before)


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_shared_weights_are_stored_once_and_read_back(model_type: str, tmp_path: Path) -> None:
    full = tiny_language_model(model_type)
    emulator = crash(full)
    write_emulator(emulator, tmp_path)
    stored = load_file(tmp_path / "emulator.safetensors")
    shared = tuple(f"{full.layout.layer_path(index)}." for index in emulator.plan.shared_from)
    assert not [name for name in stored if name.startswith(shared)]
    read = read_emulator({path.name: path for path in tmp_path.iterdir()}, device=torch.device("cpu"))
    assert read.plan == emulator.plan
    assert torch.equal(read.model(IDS).logits, emulator.model(IDS).logits)
    for index, source in read.plan.shared_from.items():
        ours, theirs = (dict(read.layout.layer(read.model, i).named_parameters()) for i in (index, source))
        assert all(ours[name] is parameter for name, parameter in theirs.items())


def test_the_report_weighs_shared_weights_once() -> None:
    full = tiny_language_model("llama")
    report = describe_emulator(crash(full), full)
    total = sum(p.numel() for p in full.model.parameters())
    layer = sum(p.numel() for p in full.layout.layer(full.model, 0).parameters())
    assert report.parameters == total - 2 * layer
    assert report.verbatim_share == pytest.approx((total - 2 * layer) / total)


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_generation_is_the_same_with_and_without_the_cache(model_type: str) -> None:
    emulator = crash(tiny_language_model(model_type))
    with_cache, without = (
        emulator.model.generate(
            IDS,
            attention_mask=torch.ones_like(IDS),
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
            use_cache=use_cache,
            return_dict_in_generate=True,
            output_logits=True,
        )
        for use_cache in (True, False)
    )
    assert torch.equal(with_cache.sequences, without.sequences)
    torch.testing.assert_close(torch.stack(with_cache.logits), torch.stack(without.logits), atol=1e-3, rtol=1e-4)


def test_only_as_much_text_is_read_as_was_asked_for() -> None:
    full, blocks = tiny_language_model("llama"), random_blocks(8, seed=3)

    def plan(num_blocks: int, text: torch.Tensor) -> LayerPlan:
        return build(full, emulator_request(num_blocks=num_blocks), text_alone(text), reporter=SILENT).plan

    assert plan(4, blocks) == plan(4, blocks[:4])
    assert plan(4, blocks) != plan(8, blocks)


def test_crash_stands_in_the_table() -> None:
    assert BUILDERS["crash"] is build
