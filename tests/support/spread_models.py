"""A tiny model spread over two devices by accelerate's real hooks, on a machine that has one.

The second device is torch's ``meta``, and PyTorch's fake tensors stand in for values: nothing is computed, but every
operation checks that its tensors are on one device, as CUDA would, and every copy between the two works.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch._functorch.config
from accelerate import dispatch_model
from torch._subclasses.fake_tensor import FakeTensorMode

from scaleot_core.models.loading import LanguageModel
from scaleot_core.models.placement import plan_placement
from tests.support.tiny_models import tiny_language_model

DEVICES = ("cpu", "meta")


def spread_model(model_type: str = "llama") -> LanguageModel:
    """Returns a six-layer model, its first layers on the CPU with all that is no layer, the last ones on ``meta``."""
    full = tiny_language_model(model_type)
    device_map = {name: DEVICES[number] for name, number in even_placement(full).items()}
    dispatch_model(full.model, device_map, "cpu", skip_keys=full.model._skip_keys_device_placement)
    return full


def even_placement(full: LanguageModel) -> dict[str, int]:
    """Returns the placement on two devices with room for three of the six layers each, the rest aside."""
    half = sum(parameter.numel() for i in range(3) for parameter in full.layout.layer(full.model, i).parameters())
    everything = sum(parameter.numel() for parameter in full.model.parameters())
    free = [everything - half, half]
    placement = plan_placement(full.model, full.layout, dtype=torch.int8, free_bytes=free)
    if placement is None:
        raise AssertionError("the model was not spread")
    return placement


@contextmanager
def two_devices() -> Iterator[None]:
    """Lets real tensors stand for fake ones, on either device."""
    with torch._functorch.config.patch(fake_tensor_allow_meta=True), FakeTensorMode(allow_non_fake_inputs=True):
        yield
