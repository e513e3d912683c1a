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
_OWN_CONTROL_GROUPS = Path("/proc/self/cgroup")
_LIMIT_USE_AND_STATISTICS = (
    ("", "memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file"),
)
"""Where Linux tells a group's bound, what is used of it and how much of that is cached files: versions 2 and 1."""


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
    """Returns the memory of a device that nothing holds, in bytes; what PyTorch keeps of a GPU's for reuse is free."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    available, in_group = int(psutil.virtual_memory().available), free_in_control_groups(_CONTROL_GROUPS, _own_groups())
    return available if in_group is None else min(available, in_group)


def free_in_control_groups(root: Path, own: Sequence[Path]) -> int | None:
    """Returns what the limits of a container or of a service's control group leave, in bytes; none without a limit.

    Cached files count as free. ``own`` are the process's groups, below ``root``; each group that they stand in, up to
    the root, which is a container's own group, may have a limit.
    """
    groups = {group for path in own for group in (path, *path.parents)} | {Path()}
    left = (
        _left_in(root / version / group, *files) for version, *files in _LIMIT_USE_AND_STATISTICS for group in groups
    )
    return min((free for free in left if free is not None), default=None)


def _own_groups() -> list[Path]:
    """Returns the process's control groups, relative to their roots; none where there is no Linux."""
    try:
        lines = _OWN_CONTROL_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    rows = (line.split(":", 2) for line in lines)
    return [Path(path.lstrip("/")) for _, controllers, path in rows if controllers in ("", "memory")]


def _left_in(group: Path, limit: str, use: str, statistics: str, cached: str) -> int | None:
    try:
        bound = int((group / limit).read_text())
        used = int((group / use).read_text())
        rows = (line.split() for line in (group / statistics).read_text().splitlines())
        given_back = {name: int(value) for name, value in rows}.get(cached, 0)
    except (OSError, ValueError):  # not this version, or no limit: "max"
        return None
    return max(bound - used + given_back, 0)
