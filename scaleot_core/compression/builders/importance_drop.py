"""ScaleOT without harmonizers: the least important layers are dropped, nothing stands in their place.

Source: ScaleOT (Yao et al., AAAI 2025), its own ablation: ``scaleot``'s first two steps, with nothing in the place of
what the second takes out. [open] Which layers carry the adapter. Differs from the paper: nothing that it states.
"""

from scaleot_core.compression.builders.request import EmulatorRequest, PublicKnowledge, layer_ranking
from scaleot_core.compression.emulator import Emulator, build_emulator
from scaleot_core.compression.plan import LayerRole, plan_layers
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import Reporter


def build(full: LanguageModel, request: EmulatorRequest, public: PublicKnowledge, *, reporter: Reporter) -> Emulator:
    """Builds the emulator that leaves out the least important layers; the others keep their rank."""
    ranking = layer_ranking(request, public)
    plan = plan_layers(
        ranking.scores,
        adapter=request.adapter,
        replaced_layer_share=request.replaced_layer_share,
        removed_rank_share=0.0,
        replaced_role=LayerRole.DROPPED,
        group_size=ranking.group_size,
    )
    return build_emulator(full, plan, {}, harmonizer_rank=1)
