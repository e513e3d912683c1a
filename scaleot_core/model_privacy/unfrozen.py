"""An emulator as an attacker holds it: a copy of one's own in which every weight is free."""

import copy
from dataclasses import replace

from scaleot_core.compression.emulator import Emulator


def unfrozen_copy(emulator: Emulator) -> Emulator:
    """Returns a float32 copy in which every parameter, harmonizers too, can be tuned; the original stays as it is.

    Nothing is rounded back to the emulator's own type, so small steps are not lost. Memory: 4 bytes for each of its
    parameters beside the original, 16 in all once gradients and AdamW's two moments stand beside them.
    """
    return replace(emulator, model=copy.deepcopy(emulator.model).float().requires_grad_(True))
