"""Which positions of a forward pass get logits: with a large vocabulary they are a good part of its cost."""

import torch
from torch import Tensor

from scaleot_core.shapes import TokenIds


def no_logits(token_ids: TokenIds) -> Tensor:
    """Returns the ``logits_to_keep`` of a pass whose logits nobody reads: a mask that keeps none.

    The number 1 in its place keeps the last position of each row, and because these do not stand together in memory a
    CPU copies the head once a row to multiply them: 335 MB a row for a vocabulary of 262,144.
    """
    return torch.zeros_like(token_ids, dtype=torch.bool)
