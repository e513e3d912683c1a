import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from scaleot_core.compression.plan import LayerRole, PlannedLayer
from scaleot_core.compression.rank import (
    ProjectionBlock,
    compress_layer,
    compress_linear,
    is_smaller_as_factors,
    kept_rank,
    projection_weight,
    split_fused,
    truncate_rank,
)
from scaleot_core.models.families import Fusion
from tests.support.tiny_models import FAMILY_CONFIGS, tiny_language_model

PLACE = ProjectionBlock(0, "some_projection")


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def effective_weight(module: nn.Module, in_features: int) -> torch.Tensor:
    """The (out, in) matrix of any map without its bias, read off by feeding it the unit vectors."""
    zero = module(torch.zeros(1, in_features))
    return (module(torch.eye(in_features)) - zero).T


@pytest.mark.parametrize(("share", "expected"), [(1.0, 12), (0.5, 6), (0.3, 3), (0.0, 1), (0.05, 1), (0.25, 3)])
def test_the_kept_rank_is_the_share_of_the_smaller_side_rounded_down_and_at_least_one(
    share: float, expected: int
) -> None:
    assert kept_rank(12, 20, share) == kept_rank(20, 12, share) == expected


def test_the_kept_rank_is_immune_to_binary_fractions() -> None:
    assert kept_rank(10, 10, 1.0 - 0.7) == 3


@pytest.mark.parametrize("rank", [1, 3, 7, 12])
def test_no_matrix_of_that_rank_is_nearer(rank: int) -> None:
    """Eckart and Young: the squared Frobenius error equals the sum of the squared singular values left out."""
    weight = matrix(12, 20)
    up, down = truncate_rank(weight, rank)
    assert (up.shape, down.shape) == ((12, rank), (rank, 20))
    left_out = torch.linalg.svdvals(weight)[rank:]
    assert float((weight - up @ down).square().sum()) == pytest.approx(
        float(left_out.square().sum()), rel=1e-5, abs=1e-5
    )


@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
def test_a_compressed_linear_is_the_best_approximation_and_keeps_its_bias(share: float) -> None:
    linear = nn.Linear(20, 12)
    compressed = compress_linear(linear, share, place=PLACE, fusion=None, num_heads=4)
    up, down = truncate_rank(linear.weight.detach(), kept_rank(12, 20, share))
    torch.testing.assert_close(effective_weight(compressed, 20), up @ down)
    assert torch.equal(compressed.bias, linear.bias)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_factors_are_stored_exactly_when_they_are_smaller(share: float) -> None:
    linear = nn.Linear(16, 16, bias=False)
    compressed = compress_linear(linear, share, place=PLACE, fusion=None, num_heads=4)
    rank = kept_rank(16, 16, share)
    stored = sum(parameter.numel() for parameter in compressed.parameters())
    assert stored == min(rank * 32, 256)
    assert is_smaller_as_factors(16, 16, rank) == (share == 0.1)


def test_two_factors_that_are_no_smaller_are_multiplied_out() -> None:
    assert not is_smaller_as_factors(16, 16, 8)
    assert is_smaller_as_factors(16, 16, 7)


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_gpt2_fused_and_transposed_projection_is_truncated_per_query_key_value(share: float) -> None:
    fused = Conv1D(48, 16)
    compressed = compress_linear(fused, share, place=PLACE, fusion=Fusion.CONTIGUOUS, num_heads=4)
    rank = kept_rank(16, 16, share)
    expected = torch.cat([_best(block, rank) for block in fused.weight.T.chunk(3)])
    torch.testing.assert_close(effective_weight(compressed, 16), expected)


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_per_head_fusion_is_truncated_per_query_key_value(share: float) -> None:
    """GPT-NeoX and BLOOM: rows (head, q|k|v, dimension). The literal index arithmetic stands here."""
    heads, width, hidden = 4, 4, 16
    fused = nn.Linear(hidden, 3 * hidden)
    compressed = compress_linear(fused, share, place=PLACE, fusion=Fusion.PER_HEAD, num_heads=heads)
    rank = kept_rank(hidden, hidden, share)
    expected = torch.empty(3 * hidden, hidden)
    for part in range(3):
        rows = [(head * 3 + part) * width + i for head in range(heads) for i in range(width)]
        expected[rows] = _best(fused.weight.detach()[rows], rank)
    torch.testing.assert_close(effective_weight(compressed, hidden), expected)


def _best(weight: torch.Tensor, rank: int) -> torch.Tensor:
    u, s, vh = torch.linalg.svd(weight.detach())
    return u[:, :rank] @ torch.diag(s[:rank]) @ vh[:rank]


@pytest.mark.parametrize("fusion", Fusion)
def test_a_fused_projection_at_full_rank_keeps_the_order_of_its_outputs(fusion: Fusion) -> None:
    fused = nn.Linear(16, 48)
    compressed = compress_linear(fused, 0.999, place=PLACE, fusion=fusion, num_heads=4)
    for block, part in zip(compressed.blocks, split_fused(fused.weight, fusion, 4), strict=True):
        block.weight.data.copy_(part)
    x = matrix(3, 16)
    torch.testing.assert_close(compressed(x), fused(x))


@pytest.mark.parametrize("fusion", Fusion)
def test_query_key_and_value_of_a_fused_projection_are_factorized_each_at_its_own_place(fusion: Fusion) -> None:
    fused = nn.Linear(16, 48)
    given: list[tuple[ProjectionBlock, torch.Tensor]] = []

    def factorize(place: ProjectionBlock, weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        given.append((place, weight))
        return truncate_rank(weight, rank)

    compress_linear(fused, 0.2, place=PLACE, fusion=fusion, num_heads=4, factorize=factorize)
    assert [place for place, _ in given] == [ProjectionBlock(0, "some_projection", block) for block in range(3)]
    for (_, weight), part in zip(given, split_fused(fused.weight, fusion, 4), strict=True):
        assert torch.equal(weight, part)


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_attention_is_compressed_and_the_feed_forward_part_untouched(model_type: str) -> None:
    full = tiny_language_model(model_type)
    layer = full.layout.layer(full.model, 1)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    x = {name: matrix(2, _in_features(layer.get_submodule(name))) for name in full.layout.attention_linears}
    outputs = {name: layer.get_submodule(name)(x[name]) for name in x}
    compress_layer(layer, full.layout, PlannedLayer(1, LayerRole.KEPT, kept_rank_share=0.5))
    after = layer.state_dict()
    attention = full.layout.attention_linears
    untouched = [name for name in before if not name.startswith(attention)]
    assert any(name.startswith(full.layout.mlp_linears) for name in untouched)
    assert all(torch.equal(before[name], after[name]) for name in untouched)
    for name, output in outputs.items():
        compressed = layer.get_submodule(name)(x[name])
        assert compressed.shape == output.shape
        assert not torch.allclose(compressed, output)


def test_full_rank_changes_nothing() -> None:
    full = tiny_language_model("llama")
    layer = full.layout.layer(full.model, 1)
    modules = list(layer.modules())
    compress_layer(layer, full.layout, PlannedLayer(1, LayerRole.KEPT))
    assert list(layer.modules()) == modules


def _in_features(linear: nn.Module) -> int:
    return linear.weight.shape[0] if isinstance(linear, Conv1D) else linear.weight.shape[1]


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_the_feed_forward_part_is_compressed_alone_where_the_plan_says_so(model_type: str) -> None:
    full = tiny_language_model(model_type)
    layer = full.layout.layer(full.model, 1)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    x = {name: matrix(2, _in_features(layer.get_submodule(name))) for name in full.layout.mlp_linears}
    weights = {name: projection_weight(layer.get_submodule(name)) for name in x}
    planned = PlannedLayer(1, LayerRole.KEPT, kept_feed_forward_rank_share=0.5)
    compress_layer(layer, full.layout, planned)
    untouched = [name for name in before if not name.startswith(full.layout.mlp_linears)]
    assert all(torch.equal(before[name], layer.state_dict()[name]) for name in untouched)
    for name, weight in weights.items():
        got = effective_weight(layer.get_submodule(name), weight.shape[1])
        torch.testing.assert_close(got, _best(weight, kept_rank(*weight.shape, 0.5)), rtol=1e-4, atol=1e-4)
