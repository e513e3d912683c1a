"""Which of PyTorch's attention kernels a training step takes: the same function, at very different speed."""

from contextlib import AbstractContextManager, nullcontext

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from scaleot_core.shapes import TokenIds

SHORT_TOKENS = 128
"""Up to this many tokens in a row the plain kernel's backward pass is the faster one on a CPU in half precision."""


def attention_for_training(model: nn.Module, token_ids: TokenIds) -> AbstractContextManager[object]:
    """Returns the context in which to run the forward pass of a training step on ``token_ids`` (batch, tokens).

    On a CPU in half precision the backward pass of the fused kernel costs as much for a short row as for a long one:
    13 ms against 4 for 8 rows of 40 tokens. There the plain kernel is taken, which sums in float32 as well.
    """
    parameter = next(model.parameters())
    is_half = parameter.element_size() == 2
    if parameter.device.type == "cpu" and is_half and token_ids.shape[1] <= SHORT_TOKENS:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()
