"""How much arithmetic a piece of work is, and how much of it a device can do in a second."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from scaleot_core.shapes import Matrix

SIDES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}
"""Sides of the square matrices whose products show a device's peak, ascending."""
_REPEATS = 5
_LONG_SECONDS = 1.0


def count_flops(work: Callable[[], object]) -> int:
    """Does ``work`` once and returns the floating-point operations of all matrix products and attention in it.

    PyTorch's own count of what is really run, two for each multiplication with its addition, going forward and
    backward, computed again or not. For a linear map of P weights over T tokens that is 2 P T forward, 2 P T backward
    where a gradient passes through it, and 2 P T where its weights are trained. Attention counts as if it were not
    causal; its kernel on the CPU, which PyTorch's table lacks, as those on a GPU. Element-wise work is not counted.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
    with counter:
        work()
    return counter.get_total_flops()


def peak_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the best speed, in FLOP/s, of a few large matrix products of this type: measured, not promised.

    A product that takes longer than a second is the last; larger ones would not be faster by much.
    """
    best = 0.0
    for side in SIDES[device.type]:
        left, right = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
        left @ right  # the first one also loads kernels
        seconds = min(_product_seconds(left, right) for _ in range(_REPEATS))
        best = max(best, 2 * side**3 / seconds)
        if seconds > _LONG_SECONDS:
            break
    return best


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _product_seconds(left: Matrix, right: Matrix) -> float:
    synchronize(left.device)
    started = time.perf_counter()
    left @ right
    synchronize(left.device)
    return time.perf_counter() - started


def _attention_flops(query: Any, key: Any, value: Any, *_: object, out_shape: object = None, **__: object) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward_flops(
    gradient: Any, query: Any, key: Any, value: Any, *_: object, out_shape: object = None, **__: object
) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]


_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
