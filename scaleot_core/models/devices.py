"""Which of this machine's devices a file's ``device`` means."""

import torch

from scaleot_core.errors import InputError


def chosen_devices(choice: str, num_gpus: int) -> tuple[torch.device, ...]:
    """Returns where a model may stand, the best place first; "auto" gives every GPU, or the CPU without one.

    Raises:
        InputError: "cuda", and there is no GPU.
    """
    if choice == "auto" and num_gpus:
        return tuple(torch.device("cuda", index) for index in range(num_gpus))
    if choice == "cuda" and not num_gpus:
        raise InputError(
            'device = "cuda", but PyTorch sees no GPU: install its CUDA build, or take device = "cpu" or "auto"'
        )
    return (torch.device("cpu" if choice == "auto" else choice),)
