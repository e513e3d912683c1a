"""What a machine is called beside a figure that was measured on it."""

import platform
import re
from pathlib import Path

import torch

from scaleot_core.report.phrases import counted

_LINUX_PROCESSORS = Path("/proc/cpuinfo")


def machine_name(device: torch.device) -> str:
    """Returns the name of the GPU, or of the processor and how many threads PyTorch computes with."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor_name()}, {counted(torch.get_num_threads(), 'thread')}"


def _processor_name() -> str:
    if _LINUX_PROCESSORS.exists():
        names = re.findall(r"^model name\s*:\s*(.+)$", _LINUX_PROCESSORS.read_text(encoding="utf-8"), re.MULTILINE)
        if names:  # Arm's processors have none
            return str(names[0])
    return platform.processor() or platform.machine()
