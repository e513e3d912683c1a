"""How a case of the benchmark is measured: its time, its memory, and its share of what the device can do."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fl_server.device_speed import count_flops, peak_flops_per_second, synchronize
from fl_server.memory import peak_memory_bytes

BYTES_PER_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class StepCost:
    """What one case costs."""

    seconds_per_step: float
    """The median over the timed steps."""
    tokens_per_second: float
    peak_memory_mebibytes: float
    """Of the process, libraries and weights included; on a GPU, of its own memory alone."""
    training_memory_mebibytes: float
    """How much the steps added to the process that had loaded the weights."""
    trained_parameters: int
    sent_bytes: int
    """By one client in all rounds of the run file: its updates, without their statements. 0 where nothing is sent."""
    flops_per_step: int
    """Floating-point operations of all matrix products of a step, as ``count_flops`` counts them."""
    peak_flops_per_second: float
    """Of the model's device and type, measured: ``peak_flops_per_second``."""
    share_of_peak: float
    """``flops_per_step / seconds_per_step`` over ``peak_flops_per_second``."""


@dataclass(frozen=True)
class Workload:
    """A case made ready; ``step`` does one step of its work."""

    step: Callable[[], object]
    tokens_per_step: int
    trained_parameters: int
    device: torch.device
    dtype: torch.dtype
    sent_bytes: int = 0
    """As ``StepCost.sent_bytes``."""


def measure(workload: Workload, steps: int) -> StepCost:
    """Takes one step that is counted, then ``steps`` that are timed, and last measures the device's peak."""
    before = _peak_mebibytes(workload.device)
    flops, seconds = count_flops(workload.step), []
    for _ in range(steps):
        synchronize(workload.device)
        started = time.perf_counter()
        workload.step()
        synchronize(workload.device)
        seconds.append(time.perf_counter() - started)
    memory, median = _peak_mebibytes(workload.device), statistics.median(seconds)
    peak = peak_flops_per_second(workload.device, workload.dtype)
    return StepCost(
        seconds_per_step=median,
        tokens_per_second=workload.tokens_per_step / median,
        peak_memory_mebibytes=memory,
        training_memory_mebibytes=memory - before,
        trained_parameters=workload.trained_parameters,
        sent_bytes=workload.sent_bytes,
        flops_per_step=flops,
        peak_flops_per_second=peak,
        share_of_peak=flops / median / peak,
    )


def _peak_mebibytes(device: torch.device) -> float:
    size_bytes = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes()
    return size_bytes / BYTES_PER_MEBIBYTE
