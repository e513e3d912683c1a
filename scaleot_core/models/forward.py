"""Layers that compute otherwise for a while."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import nn

Forward: TypeAlias = Callable[..., Any]
"""What a layer does with its inputs."""


@contextmanager
def replaced_forward(layers: Sequence[nn.Module], replacement: Callable[[Forward], Forward]) -> Iterator[None]:
    """Lets each layer do ``replacement(its own forward)`` inside the context, which leaves all as they were."""
    own = [vars(layer).get("forward") for layer in layers]  # accelerate's hooks stand there in a spread model
    for layer in layers:
        layer.forward = replacement(layer.forward)
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward
