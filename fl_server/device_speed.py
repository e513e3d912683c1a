"""How much arithmetic a piece of work is, and how much of it a device can do in a second."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from scaleot_core.seeds import generator_for
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
    causal, with the key and value heads that query heads share counted for each of them: PyTorch's own table lacks
    the kernel on the CPU, and up to 2.11 refuses shared heads. Element-wise work is not counted.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_ATTENTION)
    with counter:
        work()
    return counter.get_total_flops()


def peak_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the best speed, in FLOP/s, of a few large matrix products of this type: measured, not promised.

    A product that takes longer than a second is the last; larger ones would not be faster by much.
    """
    best, generator = 0.0, generator_for(0, "matrix products")
    for side in SIDES[device.type]:
        # Not of ones: a GPU draws less power on numbers that are alike, and then runs faster than on real ones.
        left, right = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))
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
    return int(sdpa_flop_count(query, *_with_heads_of(query, key, value)))  # type: ignore[no-untyped-call]


def _attention_backward_flops(
    gradient: Any, query: Any, key: Any, value: Any, *_: object, out_shape: object = None, **__: object
) -> int:
    shapes = (gradient, query, *_with_heads_of(query, key, value))
    return int(sdpa_backward_flop_count(*shapes))  # type: ignore[no-untyped-call]


def _with_heads_of(query: Any, *shapes: Any) -> list[tuple[int, ...]]:
    return [(shape[0], query[1], *shape[2:]) for shape in shapes]


_ATTENTION = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}{direction}"): count
    for kernel in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
    for direction, count in (("", _attention_flops), ("_backward", _attention_backward_flops))
}
