"""How many tokens a model can read."""

from torch import nn


def num_positions(model: nn.Module) -> int | None:
    """Returns how many positions the model can tell apart, or ``None`` if it has no such bound (BLOOM)."""
    bound: int | None = getattr(model.config, "max_position_embeddings", None)
    return bound


def readable_tokens(model: nn.Module, wanted: int) -> int:
    """Returns ``wanted``, or the model's number of positions if that is less: beyond it a position table has no row."""
    return min(wanted, num_positions(model) or wanted)
