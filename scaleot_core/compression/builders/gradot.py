"""GradOT: attention at a lower rank and a narrower feed-forward part, chosen to keep the adapter's gradient.

Source: GradOT (Yao et al., ACL 2025, arXiv 2507.04455). Every part that could be taken away, with the change ``d`` of
the weights that this makes, gets a gradient-preserving compression score, ``|H d|_1 - lambda (dl/dw) . d``: how far the
gradient shifts, less how far the loss rises. What scores lowest goes first. Dynamic Rank Decomposition applies it to
the singular components of the attention's matrices, of which the top 5 % always stay; Selective Channel Pruning to the
inner channels of the feed-forward part. H is Kronecker-factored. No layer is replaced and nothing is trained.

[open] What the paper's text would settle and we decided without it:

- Components and channels are scored one at a time, as if the others stayed, and each matrix has its own block of H.
- One share, beta, is taken from the rank of every attention matrix and from the channels of every layer; no budget is
  shared out over matrices or layers.
- The 5 % are those of the largest singular values, rounded up, and count towards the kept rank.
- A channel's score is the sum over the matrices it runs through; the biases of the ways in are left out.
- One lambda for both parts, where the paper has one for each; its values are not known to us. In the units of
  ``curvature.py`` the first term is some 500 times the second on SmolLM2-135M: there a lambda of 1 changes no choice,
  100 raises the loss and hardly turns the adapter's gradient, and 1000 loses both.
- H as ``curvature.py`` measures it: one pass over the public text, where the paper has support data.

Differs from the paper: the adapter may stand anywhere, not only at both ends.
"""

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from scaleot_core.compression.builders.request import EmulatorRequest, PublicKnowledge
from scaleot_core.compression.channels import kept_channel_count
from scaleot_core.compression.curvature import Curvature, measure_curvature
from scaleot_core.compression.emulator import Emulator, build_emulator
from scaleot_core.compression.plan import LayerPlan, LayerRole, PlannedLayer, RankTarget
from scaleot_core.compression.rank import Factorize, ProjectionBlock, projection_weight, targeted_linears
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import Reporter
from scaleot_core.shapes import Matrix, PartIndices, PartScores

ALWAYS_KEPT_RANK_SHARE = 0.05
"""Share of a matrix's singular components, the largest first, that no score can remove."""


def build(full: LanguageModel, request: EmulatorRequest, public: PublicKnowledge, *, reporter: Reporter) -> Emulator:
    """Builds the emulator that keeps every layer, at less attention rank and with fewer feed-forward channels.

    ``replaced_layer_share`` (alpha) is not used: GradOT replaces no layer. ``rank_target`` says whether
    ``removed_rank_share`` (beta) is taken from the attention's rank, from the feed-forward channels, or from both.
    """
    layout, target, beta = full.layout, request.rank_target, request.removed_rank_share
    plan = plan_gradot(layout.num_layers, request.adapter, removed_rank_share=beta, rank_target=target)
    if beta == 0:
        return build_emulator(full, plan, {}, harmonizer_rank=1)
    curvatures = measure_curvature(
        full,
        public.blocks()[: request.num_blocks],
        layers=plan.indices(LayerRole.KEPT),
        names=targeted_linears(layout, target),
        batch_size=request.batch_size,
        reporter=reporter,
    )
    return build_emulator(
        full,
        plan,
        {},
        harmonizer_rank=1,
        factorize=keep_best_components(curvatures, request.loss_increase_weight),
        kept_channels=_choose_channels(full, plan, curvatures, request.loss_increase_weight),
    )


def plan_gradot(
    num_layers: int, adapter: Collection[int], *, removed_rank_share: float, rank_target: RankTarget
) -> LayerPlan:
    """Plans the layers: all but the adapter's are kept, without ``removed_rank_share`` of what ``rank_target`` names.

    Raises:
        ModelError: a share outside 0 to 1.
    """
    rank, channels = rank_target.kept_shares(removed_rank_share)
    return LayerPlan(
        tuple(
            PlannedLayer(index, LayerRole.ADAPTER)
            if index in adapter
            else PlannedLayer(index, LayerRole.KEPT, kept_rank_share=rank, kept_channel_share=channels)
            for index in range(num_layers)
        )
    )


def removal_scores(curvature: Curvature, left: Matrix, right: Matrix, loss_increase_weight: float) -> PartScores:
    """Returns the score of taking each part ``left[:, k] right[:, k]^T`` away from a matrix (out, in).

    ``left`` is (out, parts), ``right`` (in, parts). A low score means: remove it first.

    GradOT's score with ``d = -left_k right_k^T``, the parameters' change. ``H d`` is ``B d A``, an outer product
    again, so its 1-norm is the product of two.
    """
    gradient_shift = _column_norms(curvature.output_gradients @ left) * _column_norms(curvature.inputs @ right)
    loss_increase = -(left * (curvature.gradient @ right)).sum(0)
    return gradient_shift - loss_increase_weight * loss_increase


def keep_best_components(curvatures: Mapping[ProjectionBlock, Curvature], loss_increase_weight: float) -> Factorize:
    """Returns the factorisation that keeps the singular components which score highest, and the top 5 %."""

    def factorize(place: ProjectionBlock, weight: Matrix, rank: int) -> tuple[Matrix, Matrix]:
        u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
        scores = removal_scores(curvatures[place], u * s, vh.T, loss_increase_weight)
        kept = kept_components(scores, rank)
        root = s[kept].sqrt()
        return u[:, kept] * root, root[:, None] * vh[kept]

    return factorize


def kept_components(scores: PartScores, rank: int) -> PartIndices:
    """Returns which ``rank`` components stay, ascending, from their scores in the order of the singular values.

    The first 5 % of them, rounded up, stay whatever they score, as far as the rank goes. Ties go to the lower index.
    """
    scores = scores.clone()
    scores[: math.ceil(ALWAYS_KEPT_RANK_SHARE * len(scores) - 1e-9)] = torch.inf
    return _highest(scores, rank)


def channel_scores(
    ways_in: Collection[tuple[Matrix, Curvature]], way_out: tuple[Matrix, Curvature], loss_increase_weight: float
) -> PartScores:
    """Returns the score of removing each inner channel: its row of every way in, its column of the way out.

    As ``removal_scores``, with one of the two vectors of every part a unit vector.
    """
    weight, around = way_out
    gradient_shift = _column_norms(around.output_gradients @ weight) * _column_norms(around.inputs)
    loss_increase = -(weight * around.gradient).sum(0)
    for weight, around in ways_in:
        gradient_shift += _column_norms(around.output_gradients) * _column_norms(around.inputs @ weight.T)
        loss_increase -= (weight * around.gradient).sum(1)
    return gradient_shift - loss_increase_weight * loss_increase


def _choose_channels(
    full: LanguageModel,
    plan: LayerPlan,
    curvatures: Mapping[ProjectionBlock, Curvature],
    loss_increase_weight: float,
) -> dict[int, PartIndices]:
    chosen = {}
    for planned in plan.layers:
        if planned.kept_channel_share == 1.0:
            continue
        layer = full.layout.layer(full.model, planned.index)
        *ways_in, way_out = (
            (projection_weight(layer.get_submodule(name)).float(), curvatures[ProjectionBlock(planned.index, name)])
            for name in full.layout.mlp_linears
        )
        scores = channel_scores(ways_in, way_out, loss_increase_weight)
        chosen[planned.index] = _highest(scores, kept_channel_count(len(scores), planned.kept_channel_share))
    return chosen


def _highest(scores: PartScores, count: int) -> PartIndices:
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def _column_norms(matrix: Matrix) -> Tensor:
    return matrix.abs().sum(0)
