"""Whether a model fits in memory, from the headers of its files: before anything is loaded."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from scaleot_core.errors import ModelError

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100 << 20
"""The safetensors library's own bound."""
_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_LIMIT_USE_AND_STATISTICS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
"""Where Linux tells a container's bound, what is used of it and how much of that is cached files: versions 2 and 1."""


def check_memory(weights: Sequence[Path], *, dtype: torch.dtype, devices: Sequence[torch.device]) -> None:
    """Checks that the weights in these safetensors files, as ``dtype``, fit in the devices' free memory together.

    Raises:
        ModelError: they do not, with both numbers; or a file has no readable header.
    """
    needed = sum(_parameters(path) for path in weights) * dtype.itemsize
    free = sum(free_bytes(device) for device in devices)
    if needed > free:
        raise ModelError(
            f"the model in {weights[0].parent} needs {needed / 1e9:.1f} GB as {str(dtype).removeprefix('torch.')} for "
            f"its weights alone, and {free / 1e9:.1f} GB are free on {devices[0].type}: take a machine with more "
            'memory, a smaller model, or model.dtype = "bfloat16"'
        )


def _parameters(path: Path) -> int:
    """Returns how many numbers a safetensors file holds, by its header."""
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            header = json.loads(stream.read(min(length, _MAX_HEADER_BYTES)))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path} is no readable safetensors file: {error!r}") from error


def free_bytes(device: torch.device) -> int:
    """Returns the memory of a device that nothing holds, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available, in_group = int(psutil.virtual_memory().available), free_in_control_group(_CONTROL_GROUPS)
    return available if in_group is None else min(available, in_group)


def free_in_control_group(root: Path) -> int | None:
    """Returns what a container's memory limit leaves, in bytes, cached files counted as free; none without a limit."""
    for limit, use, statistics, cached in _LIMIT_USE_AND_STATISTICS:
        try:
            bound = int((root / limit).read_text())
            used = int((root / use).read_text())
            rows = (line.split() for line in (root / statistics).read_text().splitlines())
            given_back = {name: int(value) for name, value in rows}.get(cached, 0)
        except (OSError, ValueError):  # not this version, or no limit: "max"
            continue
        return max(bound - used + given_back, 0)
    return None
