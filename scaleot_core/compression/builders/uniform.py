"""Plain offsite-tuning without distillation: layers dropped at a uniform stride, no harmonizers, full rank.

Source: Xiao, Lin, Han (2023, arXiv 2302.04870), LayerDrop: the adapter's layers stay, and of those between them some
are kept at a uniform stride, the first and the last among them. [open] Nothing.

Differs from the paper: there the adapter is the first two and the last two layers (the adapter rule ``ends``);
another place for it allows a fair comparison with the other builders.
"""

from collections.abc import Collection

from scaleot_core.compression.builders.request import EmulatorRequest, PublicKnowledge
from scaleot_core.compression.emulator import Emulator, build_emulator
from scaleot_core.compression.plan import LayerPlan, LayerRole, check_share, plan_of_roles, rounded_down
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import Reporter


def build(full: LanguageModel, request: EmulatorRequest, public: PublicKnowledge, *, reporter: Reporter) -> Emulator:
    """Builds the emulator that keeps the adapter layers and, of the others, some at a uniform stride."""
    plan = plan_uniform(full.layout.num_layers, request.adapter, request.replaced_layer_share)
    return build_emulator(full, plan, {}, harmonizer_rank=1)


def plan_uniform(num_layers: int, adapter: Collection[int], dropped_layer_share: float) -> LayerPlan:
    """Plans the layers: of the n without an adapter, k stay.

    Kept are those at the positions ``round(i * (n - 1) / (k - 1))`` among them, i from 0 to k - 1; n - k is
    ``dropped_layer_share`` of n, rounded down.

    Raises:
        ModelError: a share outside 0 to 1.
    """
    check_share("dropped_layer_share", dropped_layer_share)
    middle = [index for index in range(num_layers) if index not in adapter]
    kept_count = len(middle) - rounded_down(dropped_layer_share * len(middle))
    kept = {middle[position] for position in uniform_positions(len(middle), kept_count)}
    roles = dict.fromkeys(range(num_layers), LayerRole.DROPPED)
    roles |= dict.fromkeys(kept, LayerRole.KEPT) | dict.fromkeys(adapter, LayerRole.ADAPTER)
    return plan_of_roles(roles)


def uniform_positions(count: int, kept_count: int) -> list[int]:
    """Returns ``kept_count`` of the positions 0 to ``count - 1`` at a uniform stride, both ends among them."""
    if kept_count <= 1:
        return [0][:kept_count]
    return [round(i * (count - 1) / (kept_count - 1)) for i in range(kept_count)]
