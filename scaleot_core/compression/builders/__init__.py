"""The emulator builders side by side: ScaleOT and its baselines, one module each, behind one call.

A builder takes the full model, what the model owner asks for and public text; it gives an emulator whose plan says
what became of every layer.
"""

from scaleot_core.compression.builders import crash, distilled, gradot, importance_drop, scaleot, uniform
from scaleot_core.compression.builders.request import Builder, Distillation, EmulatorRequest, PublicKnowledge

BUILDERS: dict[str, Builder] = {
    "crash": crash.build,
    "distilled": distilled.build,
    "scaleot": scaleot.build,
    "uniform": uniform.build,
    "importance_drop": importance_drop.build,
    "gradot": gradot.build,
}
"""The table of builders, by their name in a run file."""

__all__ = ["BUILDERS", "Builder", "Distillation", "EmulatorRequest", "PublicKnowledge"]
