"""ScaleOT: harmonizers in place of the least important layers, less attention rank in the others.

Source: ScaleOT (Yao, Tan, Ye, Li, Zhao, Liu, Wang, Zhu, AAAI 2025, arXiv 2412.09812), stage 2, in its order:

1. N_a layers carry the adapter and stay as they are.
2. Of the others the share alpha with the lowest importance is replaced by the harmonizers that stage 1 learnt.
3. Of the rest the attention's linear maps lose the share beta of their rank (Selective Rank Compression).

[open] Which layers carry the adapter (``adapter_rule``) and how rank is removed (``rank_criterion``): the paper says
the most important, and truncated singular values. Differs from the paper: a control's scores can choose the layers
to replace in place of the learnt ones (``layer_scores``); the harmonizers stay the learnt ones. Nothing else.
"""

from scaleot_core.compression.activation_rank import nearest_in_output
from scaleot_core.compression.builders.request import EmulatorRequest, PublicKnowledge, layer_ranking
from scaleot_core.compression.emulator import Emulator, build_emulator
from scaleot_core.compression.plan import plan_layers
from scaleot_core.compression.rank import Factorize, nearest, targeted_linears
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import Reporter


def build(full: LanguageModel, request: EmulatorRequest, public: PublicKnowledge, *, reporter: Reporter) -> Emulator:
    """Builds the emulator from (N_a, alpha, beta): the least important layers replaced, the rest at lower rank."""
    importance, ranking = public.importance(), layer_ranking(request, public)
    plan = plan_layers(
        ranking.scores,
        adapter=request.adapter,
        replaced_layer_share=request.replaced_layer_share,
        removed_rank_share=request.removed_rank_share,
        rank_target=request.rank_target,
        group_size=ranking.group_size,
    )
    return build_emulator(
        full,
        plan,
        importance.harmonizers,
        harmonizer_rank=importance.settings.harmonizer_rank,
        factorize=_factorize(full, request, public, reporter),
    )


def _factorize(full: LanguageModel, request: EmulatorRequest, public: PublicKnowledge, reporter: Reporter) -> Factorize:
    if request.rank_criterion == "weight" or request.removed_rank_share == 0:
        return nearest
    names = targeted_linears(full.layout, request.rank_target)
    blocks = public.blocks()[: request.num_blocks]
    return nearest_in_output(full, blocks, names, batch_size=request.batch_size, reporter=reporter)
