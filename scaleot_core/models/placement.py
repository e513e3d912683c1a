"""Where a full model's parts go: all on one device, or the decoder layers spread over several.

Only decoder layers are spread. Embeddings, final norm and head stand on the first device, so that token ids, masks and
logits are where ``model.device`` says, as on one device; accelerate's hooks carry the hidden states from layer to
layer. The devices take turns: spreading makes room, it does not make a model faster.
"""

from collections.abc import Iterator, Sequence

import torch
from accelerate import dispatch_model
from accelerate.hooks import remove_hook_from_submodules
from torch import nn
from transformers import PreTrainedModel

from scaleot_core.models.layout import DecoderLayout

ONE_DEVICE_SHARE = 0.5
"""Of a device's free memory, the most that a model takes before it is spread: an emulator is to stand beside it."""


def spread_layers(
    layer_bytes: int, rest_bytes: int, num_layers: int, free_bytes: Sequence[int]
) -> tuple[int, ...] | None:
    """Returns the number of the device that each layer goes to, or ``None`` where the model stands on the first alone.

    ``rest_bytes`` is the size of all but the layers, which stays on the first device. The layers go to the devices in
    runs, in their order, so that every device is filled to about the same share of its ``free_bytes``.
    """
    layers_bytes = layer_bytes * num_layers
    needed = layers_bytes + rest_bytes
    if len(free_bytes) == 1 or needed <= ONE_DEVICE_SHARE * free_bytes[0]:
        return None
    rooms = [free * needed / sum(free_bytes) for free in free_bytes]
    rooms[0] = max(rooms[0] - rest_bytes, 0.0)
    ends = [sum(rooms[: number + 1]) / sum(rooms) * layers_bytes for number in range(len(rooms))]
    middles = [(index + 0.5) * layer_bytes for index in range(num_layers)]
    return tuple(next(number for number, end in enumerate(ends) if middle <= end) for middle in middles)


def plan_placement(
    model: PreTrainedModel, layout: DecoderLayout, *, dtype: torch.dtype, free_bytes: Sequence[int]
) -> dict[str, int] | None:
    """Returns accelerate's device map of ``model``, which may have no memory yet; ``None``: the first device alone.

    The map names every part of the model once, with a place in ``free_bytes``.
    """
    layer_bytes = sum(parameter.numel() for parameter in layout.layer(model, 0).parameters()) * dtype.itemsize
    all_bytes = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    rest_bytes = all_bytes - layer_bytes * layout.num_layers
    numbers = spread_layers(layer_bytes, rest_bytes, layout.num_layers, free_bytes)
    if numbers is None:
        return None
    placed = dict.fromkeys(_parts_beside(model, layout.family.layers), 0)
    return placed | {layout.layer_path(index): number for index, number in enumerate(numbers)}


def place_like(model: PreTrainedModel, placed: PreTrainedModel) -> PreTrainedModel:
    """Puts ``model``, of the same architecture, where ``placed`` stands, on one device or several."""
    device_map = getattr(placed, "hf_device_map", None) or {}
    if len(set(device_map.values())) > 1:
        main_device = next(iter(device_map.values()))
        return dispatch_model(model, device_map, main_device, skip_keys=model._skip_keys_device_placement)
    return model.to(placed.device)


def gather(model: PreTrainedModel, device: torch.device) -> None:
    """Moves the copy of a model, spread or not, to one device and takes accelerate's hooks out of it."""
    if hasattr(model, "hf_device_map"):
        remove_hook_from_submodules(model)
        for module in model.modules():
            vars(module).pop("forward", None)  # the hooks leave the class's own there, bound to the instance
        del model.hf_device_map
    model.to(device)


def _parts_beside(model: nn.Module, layers_path: str) -> Iterator[str]:
    """Yields the dotted paths of all modules that are neither the list of layers nor hold it."""
    path = ""
    for step in layers_path.split("."):
        parent = model.get_submodule(path)
        yield from (f"{path}.{name}".lstrip(".") for name, _ in parent.named_children() if name != step)
        path = f"{path}.{step}".lstrip(".")
