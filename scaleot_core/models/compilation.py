"""``torch.compile`` of the decoder layers, each for itself: layers of one shape share what was compiled."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import ShortenTraceback
from transformers import Cache

from scaleot_core.errors import ModelError
from scaleot_core.models.forward import Forward, replaced_forward
from scaleot_core.models.layout import DecoderLayout

_MOST_VARIANTS = 64
"""Versions of one layer's code: PyTorch gives up at 8, but shapes, gradients and adapters make some of each."""


@contextmanager
def compiled_layers(model: nn.Module, layout: DecoderLayout) -> Iterator[None]:
    """Runs every decoder layer compiled inside the context, which leaves the model as it was.

    Whatever stands at a layer's index counts as a layer. The first pass of every new kind compiles, for seconds to
    minutes; what was compiled is kept for as long as the process lives. Results change by no more than rounding. A
    pass with a key-value cache runs as it is: there every layer would be compiled for itself. So do the layers of a
    model that is spread over several devices, between which accelerate's hooks carry tensors.

    Not for work that hooks into the parts of a layer: compiled code does not see a hook that came later. Hooks on the
    layer itself are seen.
    """
    standing = (layout.layer(model, index) for index in range(layout.num_layers))
    layers = [layer for layer in standing if not hasattr(layer, "_hf_hook")]
    with torch._dynamo.config.patch(recompile_limit=_MOST_VARIANTS), replaced_forward(layers, _compiled):
        yield


def check_compiler(device: torch.device) -> None:
    """Compiles next to nothing for ``device``.

    Raises:
        ModelError: nothing can be compiled here.
    """
    try:
        torch.compile(lambda numbers: numbers + 1)(torch.ones(2, device=device))
    except ShortenTraceback as error:  # what compilers of any device raise
        reason, needed = str(error).partition("\n")[0], "Triton" if device.type == "cuda" else "a C++ compiler, as g++"
        raise ModelError(
            f"layers cannot be compiled on this machine: {reason}. Install {needed}, or do without: "
            "model.compiled = false, no --compile"
        ) from error


def _compiled(forward: Forward) -> Forward:
    compiled = torch.compile(forward)

    def run(*args: Any, **kwargs: Any) -> Any:
        has_cache = any(isinstance(value, Cache) for value in chain(args, kwargs.values()))
        return (forward if has_cache else compiled)(*args, **kwargs)

    return run
