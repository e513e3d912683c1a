"""How much a small adapter in each layer could change: the size of the loss's gradient on public text.

Not part of ScaleOT, which tunes the layers that are hardest to replace. A fresh LoRA adapter's gradient is that of
its layer's weights seen through a random matrix, so the weights' gradient says what any such adapter would feel.
"""

import torch
from torch import Tensor, nn

from scaleot_core.compression.finiteness import check_finite
from scaleot_core.compression.public_text import next_token_loss
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import Reporter
from scaleot_core.shapes import TokenBlocks


def adaptation_scores(
    full: LanguageModel, public_blocks: TokenBlocks, *, batch_size: int, reporter: Reporter
) -> tuple[float, ...]:
    """Returns for every layer the root of the mean squared gradient norm of its linear maps, over batches.

    The loss is next-token cross-entropy on ``public_blocks`` (blocks, tokens). Gradients are dropped as soon as they
    are measured, so that memory holds one matrix's at a time. The model comes back frozen, as it was.

    Raises:
        ModelError: a loss or a gradient is not finite.
    """
    squares: list[Tensor | float] = [0.0] * full.layout.num_layers
    weights: list[tuple[int, nn.Parameter]] = [
        (index, full.layout.layer(full.model, index).get_parameter(f"{name}.weight"))
        for index in range(full.layout.num_layers)
        for name in (*full.layout.attention_linears, *full.layout.mlp_linears)
    ]
    batches = torch.split(public_blocks, batch_size)
    hooks = []
    try:
        for index, weight in weights:
            weight.requires_grad_(True)
            hook = weight.register_post_accumulate_grad_hook(_measure(squares, index))  # type: ignore[no-untyped-call]
            hooks.append(hook)
        with reporter.stage("adaptation", steps=len(batches)) as stage:
            for batch in batches:
                loss = next_token_loss(full.model, batch)
                loss.backward()  # type: ignore[no-untyped-call]
                reached = float(loss.detach())
                check_finite([reached], "the loss", "on public text")
                stage.advance(loss=reached)
    finally:
        for hook in hooks:
            hook.remove()
        for _, weight in weights:
            weight.requires_grad_(False)
            weight.grad = None
    scores = tuple((float(square) / len(batches)) ** 0.5 for square in squares)
    check_finite(scores, "the gradient's size", "on public text")
    return scores


def _measure(squares: list[Tensor | float], index: int):  # type: ignore[no-untyped-def]
    def measure(weight: nn.Parameter) -> None:
        if weight.grad is not None:
            squares[index] += weight.grad.float().square().sum().double()  # read at the end: a GPU is not waited for
            weight.grad = None

    return measure
