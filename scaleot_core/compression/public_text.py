"""Reading public text: batches of it, and the losses that the stages of compression descend or compare."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from scaleot_core.models.attention import attention_for_training
from scaleot_core.shapes import HiddenStates, TokenBlocks, TokenIds


def endless_batches(blocks: TokenBlocks, batch_size: int, generator: torch.Generator) -> Iterator[TokenBlocks]:
    """Yields batches for ever, drawn without replacement epoch after epoch; the last of an epoch may be short."""
    while True:
        for indices in torch.split(torch.randperm(blocks.shape[0], generator=generator), batch_size):
            yield blocks[indices]


def next_token_loss(model: nn.Module, token_ids: TokenIds) -> Tensor:
    """Returns the mean next-token cross-entropy of ``model`` on ``token_ids`` (batch, tokens), a float32 scalar."""
    token_ids = token_ids.to(next(model.parameters()).device)
    with attention_for_training(model, token_ids):
        logits = model(input_ids=token_ids, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), token_ids[:, 1:].flatten())


def relative_distance(target: HiddenStates, states: HiddenStates) -> Tensor:
    """Returns ``mean(((h_T - h_S) / rms(h_T))^2)``, rms over all of h_T, in float32; no gradient flows to h_T.

    Source: Xiao, Lin, Han (2023, arXiv 2302.04870), the distillation loss of offsite-tuning.
    """
    reference = target.detach().to(states.device, torch.float32)
    rms = reference.square().mean().sqrt()
    return ((reference - states.float()) / rms).square().mean()
