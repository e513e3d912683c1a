"""How a case of the benchmark is measured: its time, its memory, and its share of what the device can do."""

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from fl_server.device_speed import count_flops, peak_flops_per_second, synchronize
from fl_server.memory import peak_memory_bytes
from scaleot_core.models.compilation import compiled_layers
from scaleot_core.models.layout import layout_for

BYTES_PER_MEBIBYTE = 1 << 20
_COMPILING_STEPS = 3
"""The second shape that comes may be compiled once more, then for any."""


@dataclass(frozen=True)
class StepCost:
    """What one case costs."""

    seconds_per_step: float
    """The median over the timed steps."""
    tokens_per_second: float
    peak_memory_mebibytes: float
    """Of the process, libraries and weights included; on a GPU, of its own memory alone."""
    training_memory_mebibytes: float
    """How much the steps added to the process that had loaded the weights; on a CPU the compiler's own memory, too."""
    trained_parameters: int
    sent_bytes: int
    """By one client in all rounds of the run file: its updates, without their statements. 0 where nothing is sent."""
    flops_per_step: int
    """Floating-point operations of all matrix products of a step, as ``count_flops`` counts them."""
    peak_flops_per_second: float
    """Of the model's device and type, measured: ``peak_flops_per_second``."""
    share_of_peak: float
    """``flops_per_step / seconds_per_step`` over ``peak_flops_per_second``."""
    compile_seconds: float = 0.0
    """What the first steps took beyond the timed ones, where the layers are compiled."""


@dataclass(frozen=True)
class Workload:
    """A case made ready; ``step`` does one step of its work."""

    step: Callable[[], object]
    tokens_per_step: int
    trained_parameters: int
    model: PreTrainedModel
    sent_bytes: int = 0
    """As ``StepCost.sent_bytes``."""


def measure(workload: Workload, steps: int, *, is_compiled: bool = False) -> StepCost:
    """Takes one step that is counted, then ``steps`` that are timed, and last measures the device's peak.

    With ``is_compiled`` the decoder layers are compiled after the step that is counted, and the operations are still
    those of the step without.
    """
    device, model = workload.model.device, workload.model
    before = _peak_mebibytes(device)
    flops, compiling = count_flops(workload.step), []
    with compiled_layers(model, layout_for(model.config)) if is_compiled else nullcontext():
        if is_compiled:
            compiling = [_seconds_of(workload) for _ in range(_COMPILING_STEPS)]
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
        seconds = [_seconds_of(workload) for _ in range(steps)]
    memory, median = _peak_mebibytes(device), statistics.median(seconds)
    peak = peak_flops_per_second(device, model.dtype)
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
        compile_seconds=max(sum(compiling) - len(compiling) * median, 0.0),
    )


def _seconds_of(workload: Workload) -> float:
    synchronize(workload.model.device)
    started = time.perf_counter()
    workload.step()
    synchronize(workload.model.device)
    return time.perf_counter() - started


def _peak_mebibytes(device: torch.device) -> float:
    size_bytes = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes()
    return size_bytes / BYTES_PER_MEBIBYTE
