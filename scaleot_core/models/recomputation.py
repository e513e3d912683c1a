"""Gradient checkpointing: decoder layers that forget their activations and compute them again going backward."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from scaleot_core.models.forward import Forward, replaced_forward
from scaleot_core.models.layout import DecoderLayout


@contextmanager
def recomputed_activations(model: nn.Module, layout: DecoderLayout) -> Iterator[None]:
    """Keeps only every layer's input for the backward pass, which costs one more forward pass; gradients stay.

    Whatever stands at a layer's index counts as a layer. Forward and backward pass belong inside the context, which
    leaves the model as it was. Not what transformers offers, which works in training mode alone: here models stay
    in eval mode, where layers draw no random number and the second pass repeats the first.
    """
    layers = [layout.layer(model, index) for index in range(layout.num_layers)]
    with replaced_forward(layers, lambda forward: partial(_recomputed, forward)):
        yield


def _recomputed(forward: Forward, *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
