"""Channel pruning: the feed-forward part of a layer with fewer inner channels.

A channel is one output of every way in (a gated part has two) and the input of the way out that they feed. What is
kept leaves the full model unchanged.
"""

from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from scaleot_core.compression.plan import PlannedLayer, rounded_down
from scaleot_core.compression.rank import projection_weight
from scaleot_core.models.layout import DecoderLayout, replace_submodule
from scaleot_core.shapes import Matrix, PartIndices

_Linear: TypeAlias = nn.Linear | Conv1D


def kept_channel_count(num_channels: int, kept_channel_share: float) -> int:
    """Returns how many channels stay: the share of them, rounded down, and at least 1."""
    return max(1, rounded_down(kept_channel_share * num_channels))


def planned_channels(layer: nn.Module, layout: DecoderLayout, planned: PlannedLayer) -> int:
    """Returns how many inner channels of a full layer stay as planned."""
    way_out = layer.get_submodule(layout.mlp_linears[-1])
    return kept_channel_count(projection_weight(way_out).shape[1], planned.kept_channel_share)


def prune_channels(layer: nn.Module, layout: DecoderLayout, kept: PartIndices) -> None:
    """Puts narrower linear maps in the feed-forward part, so that of its inner channels those in ``kept`` remain.

    The layer then computes what it computed before with the activations of the other channels at zero. Biases stay
    with their outputs. ``kept`` holds distinct channels, in the order in which they will stand.
    """
    *ways_in, way_out = layout.mlp_linears
    for name in ways_in:
        replace_submodule(layer, name, _with_outputs(layer.get_submodule(name), kept))
    replace_submodule(layer, way_out, _with_inputs(layer.get_submodule(way_out), kept))


def narrow_layer(layer: nn.Module, layout: DecoderLayout, planned: PlannedLayer) -> None:
    """Gives a layer the planned number of channels, whichever they are: shapes for a state dictionary to fill."""
    if planned.kept_channel_share < 1.0:
        prune_channels(layer, layout, torch.arange(planned_channels(layer, layout, planned)))


def verbatim_count(tensor: Tensor, original: Tensor) -> int:
    """Returns how many numbers of ``original`` stand unchanged in ``tensor``, of its size or narrower on one side.

    At the same size that is all or none of them; of a pruned matrix or bias, those of every row or column that equals
    one of the original's, bit for bit.
    """
    if tensor.shape == original.shape:
        return tensor.numel() if torch.equal(tensor, original) else 0
    narrower = [side for side in range(tensor.dim()) if tensor.shape[side] != original.shape[side]]
    if len(narrower) != 1:
        return 0
    known = set(_slices(original, narrower[0]))
    slices = _slices(tensor, narrower[0])
    return sum(each in known for each in slices) * (tensor.numel() // len(slices))


def _slices(tensor: Tensor, side: int) -> list[bytes]:
    rows = tensor.detach().movedim(side, 0).reshape(tensor.shape[side], -1).contiguous()
    return [row.tobytes() for row in rows.view(torch.uint8).cpu().numpy()]


def _with_outputs(linear: _Linear, kept: PartIndices) -> _Linear:
    bias = linear.bias
    return _linear_of(linear, projection_weight(linear)[kept], None if bias is None else bias.detach()[kept])


def _with_inputs(linear: _Linear, kept: PartIndices) -> _Linear:
    bias = linear.bias
    return _linear_of(linear, projection_weight(linear)[:, kept], None if bias is None else bias.detach().clone())


def _linear_of(like: _Linear, weight: Matrix, bias: Tensor | None) -> _Linear:
    """Returns a map of this weight (out, in) that stores it as ``like`` does; no random number is drawn for it."""
    out_features, in_features = weight.shape
    with torch.device("meta"):
        linear: _Linear = (
            Conv1D(out_features, in_features)
            if isinstance(like, Conv1D)
            else nn.Linear(in_features, out_features, bias=bias is not None)
        )
    linear.weight = nn.Parameter((weight.T if isinstance(like, Conv1D) else weight).contiguous())
    if bias is not None:
        linear.bias = nn.Parameter(bias)
    return linear
