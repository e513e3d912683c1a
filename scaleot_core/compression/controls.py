"""Layer importance by other means than reinforcement learning: what the scores of Dynamic LayerReplace must beat.

Every control gives one score for each layer, and a high one means important. None is part of ScaleOT.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from scaleot_core.compression.activations import observe_layers
from scaleot_core.compression.cka import LinearCka
from scaleot_core.compression.harmonizer import DroppedLayer
from scaleot_core.compression.public_text import next_token_loss
from scaleot_core.errors import ModelError
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import Reporter
from scaleot_core.seeds import generator_for
from scaleot_core.shapes import HiddenStates, TokenBlocks

TextControlName: TypeAlias = Literal["leave_one_out", "angular_change", "cka"]
"""The controls that read public text; the other is chance."""


@dataclass(frozen=True)
class ActivationChanges:
    """How much each layer changes its hidden states, by the two measures that one pass over the text gives."""

    angular_change: tuple[float, ...]
    """Mean angle over all tokens between a layer's input and its output, over pi: from 0 to 1."""
    cka: tuple[float, ...]
    """1 - linear CKA of a layer's input and output: from 0, a change that CKA does not see, to 1."""


def control_scores(
    measure: TextControlName, full: LanguageModel, public_blocks: TokenBlocks, *, batch_size: int, reporter: Reporter
) -> tuple[float, ...]:
    """Returns the scores of all layers by one control, read off ``public_blocks`` (blocks, tokens).

    Raises:
        ModelError: as ``leave_one_out`` and ``activation_changes``.
    """
    if measure == "leave_one_out":
        return leave_one_out(full, public_blocks, batch_size=batch_size, reporter=reporter)
    changes = activation_changes(full, public_blocks, batch_size=batch_size, reporter=reporter)
    return changes.cka if measure == "cka" else changes.angular_change


def leave_one_out(
    full: LanguageModel, public_blocks: TokenBlocks, *, batch_size: int, reporter: Reporter
) -> tuple[float, ...]:
    """Returns the loss with each layer skipped, less the loss of the full model; negative where the layer harms.

    The loss is the mean next-token cross-entropy, in nats, over ``public_blocks`` (blocks, tokens), which are read
    once more than there are layers. The model comes back untouched, also after an error.

    Raises:
        ModelError: a loss is not finite.
    """
    layout, model = full.layout, full.model
    losses = []
    with reporter.stage("leave one out", steps=layout.num_layers + 1) as stage:
        unchanged = _mean_loss(full, public_blocks, batch_size)
        stage.advance(loss=unchanged)
        for index in range(layout.num_layers):
            layer = layout.layer(model, index)
            skipped = DroppedLayer(layer_index=index, returns_tuple=layout.family.returns_tuple)
            try:
                layout.replace_layer(model, index, skipped)
                losses.append(_mean_loss(full, public_blocks, batch_size))
            finally:
                layout.replace_layer(model, index, layer)
            stage.advance(loss=losses[-1])
    return tuple(loss - unchanged for loss in losses)


def activation_changes(
    full: LanguageModel, public_blocks: TokenBlocks, *, batch_size: int, reporter: Reporter
) -> ActivationChanges:
    """Returns the angular change and the change in CKA of every layer, from one pass over ``public_blocks``.

    The angle is that of Gromov et al. (arXiv 2403.17887, eq. 4) for a block of one layer; they take the last token
    of each text, here every token counts. CKA: Kornblith et al. (arXiv 1905.00414); a few tokens with huge
    activations can rule it, and then all layers look alike to it.

    Raises:
        ModelError: CKA is undefined, because a layer's activations are all alike or not finite.
    """
    layout = full.layout
    angles = [0.0] * layout.num_layers
    devices = [layout.layer_device(full.model, index) for index in range(layout.num_layers)]
    alignments = [LinearCka(layout.hidden_size, device) for device in devices]

    def add(index: int, x: HiddenStates, y: HiddenStates) -> None:
        angles[index] += float(_angles(x, y).double().sum())
        alignments[index].add(x, y)

    observe_layers(full, public_blocks, add, batch_size=batch_size, reporter=reporter, stage="angular change and CKA")
    return ActivationChanges(
        angular_change=tuple(angle / public_blocks.numel() / math.pi for angle in angles),
        cka=tuple(1 - alignment.similarity() for alignment in alignments),
    )


def random_scores(num_layers: int, seed: int) -> tuple[float, ...]:
    """Returns scores drawn evenly from 0 to 1: what any other importance must beat."""
    return tuple(torch.rand(num_layers, generator=generator_for(seed, "random importance")).tolist())


def _mean_loss(full: LanguageModel, blocks: TokenBlocks, batch_size: int) -> float:
    with torch.inference_mode():
        batches = torch.split(blocks, batch_size)
        loss = sum(float(next_token_loss(full.model, batch)) * len(batch) for batch in batches) / len(blocks)
    if not math.isfinite(loss):
        raise ModelError(f"the loss on public text is {loss}, with a layer skipped or none: try another model.dtype")
    return loss


def _angles(x: HiddenStates, y: HiddenStates) -> Tensor:
    """Returns the angle (batch, tokens) between ``x`` and ``y``: arccos of their cosine, but exact when it is small."""
    x_unit, y_unit = (nn.functional.normalize(states.float(), dim=-1) for states in (x, y))
    return 2 * torch.atan2((x_unit - y_unit).norm(dim=-1), (x_unit + y_unit).norm(dim=-1))
