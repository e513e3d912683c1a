"""Selective rank compression: linear maps of the kept layers at a lower rank.

Source: ScaleOT (Yao et al., 2024), Selective Rank Compression. The paper's beta is the share *removed*; the
functions here take the share kept, 1 - beta. The paper compresses attention alone; its figure of what happens
otherwise needs the feed-forward part too.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from scaleot_core.compression.plan import PlannedLayer, RankTarget, rounded_down
from scaleot_core.models.families import FUSED_BLOCKS, Fusion
from scaleot_core.models.layout import DecoderLayout, replace_submodule
from scaleot_core.shapes import Matrix


@dataclass(frozen=True)
class ProjectionBlock:
    """One matrix of a model: an original layer index, a linear map's dotted name in it, and its row block."""

    layer: int
    name: str
    block: int = 0
    """0 to 2 for query, key and value of a fused projection."""


Factorize = Callable[[ProjectionBlock, Matrix, int], tuple[Matrix, Matrix]]
"""Gives a matrix (out, in) at a rank as factors ``up`` (out, rank) and ``down`` (rank, in)."""


def targeted_linears(layout: DecoderLayout, target: RankTarget) -> tuple[str, ...]:
    """Returns the dotted names, within a layer, of the linear maps whose rank is reduced."""
    attention, feed_forward = target.kept_shares(1.0)
    return (*(layout.attention_linears if attention < 1 else ()), *(layout.mlp_linears if feed_forward < 1 else ()))


def kept_rank(out_features: int, in_features: int, kept_rank_share: float) -> int:
    """Returns the rank that a matrix keeps: the share of its smaller side, rounded down, and at least 1."""
    return max(1, rounded_down(kept_rank_share * min(out_features, in_features)))


def is_smaller_as_factors(out_features: int, in_features: int, rank: int) -> bool:
    """Tells whether two factors of this rank hold fewer numbers than the matrix itself."""
    return rank * (out_features + in_features) < out_features * in_features


def truncate_rank(weight: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """Returns factors ``up`` (out, rank) and ``down`` (rank, in) whose product is the nearest matrix of that rank.

    Nearest in the Frobenius norm (Eckart and Young); the singular values are split evenly between both factors, so
    that half precision rounds both alike. Computed in float32.
    """
    u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vh[:rank]


class CompressedLinear(nn.Module):
    """A linear map of one or several row blocks, each stored as two factors or as a plain matrix.

    A fused projection has one block each for query, key and value; ``fusion`` and ``num_heads`` say in which order
    the family expects their outputs. Input (..., in), output (..., out). Its parameters are made on torch's current
    default device and hold nothing yet: ``compress_linear`` or a state dictionary fills them.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        kept_rank_share: float,
        *,
        has_bias: bool,
        fusion: Fusion | None,
        num_heads: int,
    ) -> None:
        super().__init__()
        out_features, in_features = shape
        num_blocks = FUSED_BLOCKS if fusion else 1
        self.blocks = nn.ModuleList(
            _empty_block(out_features // num_blocks, in_features, kept_rank_share) for _ in range(num_blocks)
        )
        self.bias = nn.Parameter(torch.empty(out_features)) if has_bias else None
        self._fusion, self._num_heads = fusion, num_heads

    def forward(self, x: Tensor) -> Tensor:
        """Returns the map of ``x``, its features in the order of the map that was compressed."""
        parts = [block(x) for block in self.blocks]
        if self._fusion is Fusion.PER_HEAD:
            heads = [part.view(*part.shape[:-1], self._num_heads, -1) for part in parts]
            output = torch.stack(heads, dim=-2).flatten(-3)
        else:
            output = torch.cat(parts, dim=-1)
        return output if self.bias is None else output + self.bias


def split_fused(weight: Matrix, fusion: Fusion, num_heads: int) -> list[Matrix]:
    """Returns the query, key and value matrices, each (out / 3, in), of a fused weight (out, in)."""
    if fusion is Fusion.CONTIGUOUS:
        return list(weight.chunk(3))
    per_head = weight.view(num_heads, FUSED_BLOCKS, -1, weight.shape[1])
    return [per_head[:, part].flatten(0, 1) for part in range(FUSED_BLOCKS)]


def nearest(_: ProjectionBlock, weight: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """The paper's own factorisation: ``truncate_rank``, whichever matrix it is."""
    return truncate_rank(weight, rank)


def compress_linear(
    linear: nn.Linear | Conv1D,
    kept_rank_share: float,
    *,
    place: ProjectionBlock,
    fusion: Fusion | None,
    num_heads: int,
    factorize: Factorize = nearest,
) -> CompressedLinear:
    """Returns the low-rank stand-in of one projection (``Linear``, or GPT-2's transposed ``Conv1D``) at ``place``."""
    weight = projection_weight(linear)
    compressed = empty_like(linear, kept_rank_share, fusion=fusion, num_heads=num_heads)
    matrices = split_fused(weight, fusion, num_heads) if fusion else [weight]
    for number, (block, matrix) in enumerate(zip(compressed.blocks, matrices, strict=True)):
        rank = kept_rank(matrix.shape[0], matrix.shape[1], kept_rank_share)
        up, down = factorize(ProjectionBlock(place.layer, place.name, number), matrix, rank)
        factors = (down, up) if isinstance(block, nn.Sequential) else (up @ down,)
        state = dict(zip(block.state_dict(), (factor.to(weight.dtype).contiguous() for factor in factors), strict=True))
        block.load_state_dict(state, assign=True)
    if linear.bias is not None:
        compressed.bias = nn.Parameter(linear.bias.detach().clone())
    return compressed


def empty_like(
    linear: nn.Linear | Conv1D, kept_rank_share: float, *, fusion: Fusion | None, num_heads: int
) -> CompressedLinear:
    """Returns a low-rank stand-in of the right shapes that holds no numbers and takes no memory."""
    weight = projection_weight(linear)
    with torch.device("meta"):
        return CompressedLinear(
            (weight.shape[0], weight.shape[1]),
            kept_rank_share,
            has_bias=linear.bias is not None,
            fusion=fusion,
            num_heads=num_heads,
        )


def projection_weight(linear: nn.Linear | Conv1D) -> Matrix:
    """Returns the weight of a projection as (out, in), whichever way the module stores it."""
    weight: Tensor = linear.weight.detach()
    return weight.T if isinstance(linear, Conv1D) else weight


def compress_layer(
    layer: nn.Module, layout: DecoderLayout, planned: PlannedLayer, factorize: Factorize | None = nearest
) -> None:
    """Puts low-rank maps in place of one kept layer's projections, as planned; a share of 1 leaves a part alone.

    With ``factorize`` None they hold no numbers: the shapes for a state dictionary to fill.
    """
    shares = [(name, planned.kept_rank_share) for name in layout.attention_linears]
    shares += [(name, planned.kept_feed_forward_rank_share) for name in layout.mlp_linears]
    for name, share in shares:
        if share == 1.0:
            continue
        linear = layer.get_submodule(name)
        fusion = layout.family.fusion if name == layout.attention_linears[0] else None
        heads = layout.num_attention_heads
        if factorize is None:
            compressed = empty_like(linear, share, fusion=fusion, num_heads=heads)
        else:
            place = ProjectionBlock(planned.index, name)
            compressed = compress_linear(
                linear, share, place=place, fusion=fusion, num_heads=heads, factorize=factorize
            )
        replace_submodule(layer, name, compressed)


def _empty_block(out_features: int, in_features: int, kept_rank_share: float) -> nn.Module:
    rank = kept_rank(out_features, in_features, kept_rank_share)
    if is_smaller_as_factors(out_features, in_features, rank):
        return nn.Sequential(nn.Linear(in_features, rank, bias=False), nn.Linear(rank, out_features, bias=False))
    return nn.Linear(in_features, out_features, bias=False)
