"""Gradient checkpointing: decoder layers that forget their activations and compute them again going backward."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from scaleot_core.models.layout import DecoderLayout


@contextmanager
def recomputed_activations(model: nn.Module, layout: DecoderLayout) -> Iterator[None]:
    """Keeps only every layer's input for the backward pass, which costs one more forward pass; gradients stay.

    Whatever stands at a layer's index counts as a layer. Forward and backward pass belong inside the context, which
    leaves the model as it was. Not what transformers offers, which works in training mode alone: here models stay
    in eval mode, where layers draw no random number and the second pass repeats the first.
    """
    layers = [layout.layer(model, index) for index in range(layout.num_layers)]
    own = [vars(layer).get("forward") for layer in layers]  # accelerate's hooks stand there in a spread model
    for layer in layers:
        layer.forward = partial(_recomputed, layer.forward)
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
