from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from scaleot_core.compression.channels import kept_channel_count, narrow_layer, prune_channels, verbatim_count
from scaleot_core.compression.emulator import Emulator, build_emulator, describe_emulator, read_emulator, write_emulator
from scaleot_core.compression.plan import LayerPlan, LayerRole, PlannedLayer
from scaleot_core.compression.rank import kept_rank, projection_weight
from scaleot_core.errors import ModelError
from scaleot_core.models.layout import DecoderLayout
from scaleot_core.models.loading import LanguageModel
from tests.support.tiny_models import FAMILY_CONFIGS, tiny_language_model

IDS = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(1))
CPU = torch.device("cpu")
QUARTER = 0.25


def inner_size(full: LanguageModel) -> int:
    """64 in GPT-2 and BLOOM, 24 in the others."""
    return 64 if full.layout.family.model_type in ("gpt2", "bloom") else 24


def some_channels(full: LanguageModel, count: int, seed: int = 0) -> torch.Tensor:
    return torch.randperm(inner_size(full), generator=torch.Generator().manual_seed(seed))[:count].sort().values


def plan_with(*kept: PlannedLayer, layers: int = 6) -> LayerPlan:
    by_index = {planned.index: planned for planned in kept}
    return LayerPlan(tuple(by_index.get(i, PlannedLayer(i, LayerRole.ADAPTER)) for i in range(layers)))


def pruned(full: LanguageModel, *kept: PlannedLayer) -> Emulator:
    channels = {
        planned.index: some_channels(
            full, kept_channel_count(inner_size(full), planned.kept_channel_share), seed=planned.index
        )
        for planned in kept
        if planned.role is LayerRole.KEPT
    }
    return build_emulator(full, plan_with(*kept), {}, harmonizer_rank=1, kept_channels=channels)


def written_and_read(emulator: Emulator, directory: Path) -> Emulator:
    write_emulator(emulator, directory)
    return read_emulator({path.name: path for path in directory.iterdir()}, device=CPU)


def silence(kept: torch.Tensor) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], torch.Tensor]:
    def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> torch.Tensor:
        silent = torch.zeros_like(args[0])
        silent[..., kept] = args[0][..., kept]
        return silent

    return hook


def logits_with_the_others_at_zero(
    model: PreTrainedModel, layout: DecoderLayout, index: int, kept: torch.Tensor
) -> torch.Tensor:
    way_out = layout.layer(model, index).get_submodule(layout.mlp_linears[-1])
    hook = way_out.register_forward_pre_hook(silence(kept))
    try:
        return model(IDS).logits
    finally:
        hook.remove()


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_pruning_equals_the_other_channels_at_zero(model_type: str) -> None:
    full = tiny_language_model(model_type)
    kept = some_channels(full, 7)
    expected = logits_with_the_others_at_zero(full.model, full.layout, 2, kept)
    assert not torch.allclose(expected, full.model(IDS).logits)
    prune_channels(full.layout.layer(full.model, 2), full.layout, kept)
    torch.testing.assert_close(full.model(IDS).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_what_stays_is_stored_as_it_was_under_the_same_names(model_type: str) -> None:
    full = tiny_language_model(model_type)
    layer = full.layout.layer(full.model, 2)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    kinds = {name: type(layer.get_submodule(name)) for name in full.layout.mlp_linears}
    kept = some_channels(full, 7)
    prune_channels(layer, full.layout, kept)
    after = layer.state_dict()
    assert list(before) == list(after)
    assert {name: type(layer.get_submodule(name)) for name in kinds} == kinds
    *ways_in, way_out = full.layout.mlp_linears
    transposed = full.layout.family.transposed
    for name, tensor in before.items():
        map_name, _, leaf = name.rpartition(".")
        if map_name in ways_in:
            expected = tensor[:, kept] if transposed and leaf == "weight" else tensor[kept]
        elif map_name == way_out and leaf == "weight":
            expected = tensor[kept] if transposed else tensor[:, kept]
        else:
            expected = tensor
        assert torch.equal(after[name], expected), name


@pytest.mark.parametrize(("share", "expected"), [(1.0, 24), (0.5, 12), (0.1, 2), (0.0, 1), (0.01, 1)])
def test_the_kept_channels_are_the_share_rounded_down_and_at_least_one(share: float, expected: int) -> None:
    assert kept_channel_count(24, share) == expected


def test_the_kept_channels_are_immune_to_binary_fractions() -> None:
    assert kept_channel_count(10, 1.0 - 0.7) == 3
    assert kept_channel_count(1000, 0.29) == 290


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_full_share_changes_nothing(model_type: str) -> None:
    full = tiny_language_model(model_type)
    layer, before = full.layout.layer(full.model, 1), full.model(IDS).logits
    modules = list(layer.modules())
    narrow_layer(layer, full.layout, PlannedLayer(1, LayerRole.KEPT))
    assert list(layer.modules()) == modules
    prune_channels(layer, full.layout, torch.arange(inner_size(full)))
    assert torch.equal(full.model(IDS).logits, before)


def test_no_random_number_is_drawn() -> None:
    full = tiny_language_model("gpt2")
    before = torch.random.get_rng_state()
    prune_channels(full.layout.layer(full.model, 1), full.layout, torch.arange(3))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_a_pruned_emulator_written_and_read_computes_the_same_logits(model_type: str, tmp_path: Path) -> None:
    full = tiny_language_model(model_type)
    before = full.model(IDS).logits
    emulator = pruned(
        full,
        PlannedLayer(1, LayerRole.KEPT, kept_channel_share=1.0 - 0.7),
        PlannedLayer(2, LayerRole.KEPT, 0.3, 0.3, 0.5),
        PlannedLayer(3, LayerRole.KEPT, kept_channel_share=0.0),
    )
    read = written_and_read(emulator, tmp_path)
    assert torch.equal(read.model(IDS).logits, emulator.model(IDS).logits)
    assert read.plan == emulator.plan
    assert not torch.allclose(emulator.model(IDS).logits, before)
    assert torch.equal(full.model(IDS).logits, before)


def test_channels_are_pruned_before_the_rank_is_reduced() -> None:
    full = tiny_language_model("llama")
    emulator = pruned(full, PlannedLayer(1, LayerRole.KEPT, 1.0, 0.5, QUARTER))
    exact = projection_weight(full.layout.layer(full.model, 1).get_submodule("mlp.up_proj"))[some_channels(full, 6, 1)]
    rank = kept_rank(6, 16, 0.5)
    u, s, vh = torch.linalg.svd(exact)
    up_proj = emulator.layout.layer(emulator.model, 1).get_submodule("mlp.up_proj")
    got = up_proj(torch.eye(16)).T
    torch.testing.assert_close(got, u[:, :rank] @ torch.diag(s[:rank]) @ vh[:rank], rtol=1e-4, atol=1e-4)


def test_a_shared_layer_runs_with_the_pruned_weights(tmp_path: Path) -> None:
    full = tiny_language_model("llama")
    emulator = pruned(
        full,
        PlannedLayer(1, LayerRole.KEPT, 0.5, kept_channel_share=0.5),
        PlannedLayer(2, LayerRole.SHARED, shared_from=1),
    )
    own, shared = (emulator.layout.layer(emulator.model, i).get_submodule("mlp.up_proj").weight for i in (1, 2))
    assert own.shape == (12, 16)
    assert shared.data_ptr() == own.data_ptr()
    read = written_and_read(emulator, tmp_path)
    assert torch.equal(read.model(IDS).logits, emulator.model(IDS).logits)


@pytest.mark.parametrize(
    ("model_type", "lost"),
    [
        ("opt", 18 * (16 + 1) + 16 * 18),  # 6 of 24 channels stay: rows and biases of the way in, columns out
        ("llama", 3 * 18 * 16),  # gate, up, down; no biases
        ("gpt2", 48 * (16 + 1) + 16 * 48),  # 16 of 64 channels stay
    ],
)
def test_the_verbatim_share_counts_what_pruning_leaves(model_type: str, lost: int) -> None:
    full = tiny_language_model(model_type)
    full_size = sum(parameter.numel() for parameter in full.model.parameters())
    report = describe_emulator(pruned(full, PlannedLayer(1, LayerRole.KEPT, kept_channel_share=QUARTER)), full)
    assert report.verbatim_share == pytest.approx((full_size - lost) / full_size, abs=1e-12)
    assert report.parameters == full_size - lost


def test_only_rows_and_columns_that_stay_bit_for_bit_are_verbatim() -> None:
    original = torch.arange(12.0).reshape(4, 3)
    assert verbatim_count(original.clone(), original) == 12
    assert verbatim_count(original + 1, original) == 0
    assert verbatim_count(original[[0, 2]], original) == 6
    assert verbatim_count(original[:, [1]], original) == 4
    changed = original[[0, 2]]
    changed[1, 1] += 1e-3
    assert verbatim_count(changed, original) == 3
    assert verbatim_count(original[:2, :2], original) == 0
    assert verbatim_count(original[0, [2]], original[0]) == 1
    assert verbatim_count(original.bfloat16()[[3]], original.bfloat16()) == 3


@pytest.mark.parametrize("chosen", [{}, {1: torch.arange(5)}, {2: torch.arange(6)}])
def test_channels_that_do_not_fit_the_plan_are_refused(chosen: dict[int, torch.Tensor]) -> None:
    plan = plan_with(PlannedLayer(1, LayerRole.KEPT, kept_channel_share=QUARTER))
    with pytest.raises(ModelError, match="layer 1: the plan keeps 6 channels"):
        build_emulator(tiny_language_model("llama"), plan, {}, harmonizer_rank=1, kept_channels=chosen)


def test_a_pruned_gpt2_map_stays_transposed() -> None:
    full = tiny_language_model("gpt2")
    layer = full.layout.layer(full.model, 1)
    prune_channels(layer, full.layout, torch.arange(5))
    way_in, way_out = (layer.get_submodule(name) for name in full.layout.mlp_linears)
    assert isinstance(way_in, Conv1D) and isinstance(way_out, Conv1D)
    assert (tuple(way_in.weight.shape), tuple(way_out.weight.shape)) == ((16, 5), (5, 16))
