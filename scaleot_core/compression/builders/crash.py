"""CRaSh: neighbours that represent text alike form a cluster; of each one layer stays, and runs in the others' slots.

Source: CRaSh (Zhang, Ding, Qi, Zhu, Long, Zhou, EMNLP 2023, arXiv 2310.15477). Its three steps:

1. clustering: while there are too many clusters, the two neighbours merge whose touching layers are most alike, by
   linear CKA of their outputs;
2. removing: of every cluster the centre stays, of an even one the deeper of the two;
3. sharing: every removed layer's slot runs with the weights of the kept layer nearest in depth, of two the deeper. At
   the rim of a large cluster that can be the centre of the next one.

[open] What a text's representation is. Hidden states are averaged over the tokens of a block, later tokens weighing
more in proportion to their position, which is one of the ways the authors' own runs do it. With every token by itself
the few with huge activations rule CKA: in SmolLM2-135M it is then 0.9999 between any two of layers 11 to 27.

[open] Clusters reach across adapter layers: neighbours are neighbours among the layers without an adapter. Else an
adapter spread over the depth would force more clusters than a large ``replaced_layer_share`` leaves layers.

Differs from the paper: there all layers are clustered, the adapter layers are some of the centres, and the text is the
downstream task's; here the adapter layers are chosen beforehand, the others are clustered, and the text is public,
because the model owner has no other. Removed layers never run with an adapter layer's weights (the paper's code has
both ways), which change with every round.
"""

from collections.abc import Collection, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from scaleot_core.compression.activations import observe_layers
from scaleot_core.compression.builders.request import EmulatorRequest, PublicKnowledge
from scaleot_core.compression.cka import LinearCka
from scaleot_core.compression.emulator import Emulator, build_emulator
from scaleot_core.compression.plan import LayerPlan, LayerRole, check_share, plan_of_roles, rounded_down
from scaleot_core.errors import ModelError
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import Reporter
from scaleot_core.shapes import HiddenStates, TokenBlocks

MIN_BLOCKS = 3
"""Any two representations of two texts are alike to CKA."""


def build(full: LanguageModel, request: EmulatorRequest, public: PublicKnowledge, *, reporter: Reporter) -> Emulator:
    """Builds the emulator that keeps the adapter layers and the centre of every cluster; all at full rank."""
    num_layers = full.layout.num_layers
    similarities = neighbour_similarities(
        full,
        [index for index in range(num_layers) if index not in request.adapter],
        public.blocks()[: request.num_blocks],
        batch_size=request.batch_size,
        reporter=reporter,
    )
    plan = plan_crash(num_layers, request.adapter, request.replaced_layer_share, similarities)
    return build_emulator(full, plan, {}, harmonizer_rank=1)


def plan_crash(
    num_layers: int, adapter: Collection[int], removed_layer_share: float, similarities: Sequence[float]
) -> LayerPlan:
    """Plans the layers from the similarities of neighbours among the n that carry no adapter, n - 1 numbers.

    There are as many clusters as layers stay: n less ``removed_layer_share`` of n, rounded down. Where none stays
    there is nothing to share, and the slots are dropped.

    Raises:
        ModelError: a share outside 0 to 1, or another count of similarities.
    """
    check_share("removed_layer_share", removed_layer_share)
    others = [index for index in range(num_layers) if index not in adapter]
    if len(similarities) != max(len(others) - 1, 0):
        raise ModelError(f"{len(others)} layers have {len(others) - 1} pairs of neighbours, got {len(similarities)}")
    kept_count = len(others) - rounded_down(removed_layer_share * len(others))
    clusters = cluster_adjacent(similarities, kept_count) if kept_count else ()
    kept = [others[cluster[len(cluster) // 2]] for cluster in clusters]
    shared_from = {index: _nearest(index, kept) for index in others if kept and index not in kept}
    roles = dict.fromkeys(range(num_layers), LayerRole.DROPPED) | dict.fromkeys(shared_from, LayerRole.SHARED)
    roles |= dict.fromkeys(kept, LayerRole.KEPT) | dict.fromkeys(adapter, LayerRole.ADAPTER)
    return plan_of_roles(roles, shared_from=shared_from)


def cluster_adjacent(similarities: Sequence[float], num_clusters: int) -> tuple[range, ...]:
    """Returns the clusters, in order, of positions in a row whose neighbours have these similarities.

    ``similarities[i]`` is that of positions i and i + 1. Clusters start as single positions; two neighbouring ones
    are as alike as the two positions that touch, and the most alike merge, of equal ones the first.

    Raises:
        ModelError: ``num_clusters`` is not 1 to the number of positions.
    """
    if not 1 <= num_clusters <= len(similarities) + 1:
        raise ModelError(f"{len(similarities) + 1} layers form 1 to as many clusters, not {num_clusters}")
    clusters = [range(position, position + 1) for position in range(len(similarities) + 1)]
    while len(clusters) > num_clusters:
        left = max(range(len(clusters) - 1), key=lambda number: similarities[clusters[number][-1]])
        clusters[left : left + 2] = [range(clusters[left].start, clusters[left + 1].stop)]
    return tuple(clusters)


def neighbour_similarities(
    full: LanguageModel, layers: Sequence[int], public_blocks: TokenBlocks, *, batch_size: int, reporter: Reporter
) -> tuple[float, ...]:
    """Returns the linear CKA of the outputs of every two ``layers`` that follow one another in this order.

    One sample is one of ``public_blocks`` (blocks, tokens): the mean of its hidden states, the token at position t,
    from 1, weighing t. The more blocks beside the hidden size, the less CKA exceeds its true value.

    Raises:
        ModelError: fewer than three blocks, or CKA is undefined.
    """
    check_enough(public_blocks)
    averages: dict[int, list[Tensor]] = {index: [] for index in layers}

    def average(index: int, _: HiddenStates, y: HiddenStates) -> None:
        if index in averages:
            averages[index].append(_mean_by_position(y).cpu())

    observe_layers(full, public_blocks, average, batch_size=batch_size, reporter=reporter, stage="layer similarity")
    samples = [torch.cat(averages[index]) for index in layers]
    return tuple(_similarity(before, after) for before, after in pairwise(samples))


def check_enough(public_blocks: TokenBlocks) -> None:
    """Raises ModelError for fewer than ``MIN_BLOCKS`` blocks of public text."""
    if len(public_blocks) < MIN_BLOCKS:
        raise ModelError(
            f"crash needs at least {MIN_BLOCKS} blocks of public text, got {len(public_blocks)}: give more text"
        )


def _mean_by_position(states: HiddenStates) -> Tensor:
    """Returns (batch, hidden), float32."""
    weights = torch.arange(1, states.shape[1] + 1, device=states.device, dtype=torch.float32)[:, None]
    return (states.float() * weights / weights.sum()).sum(dim=1)


def _similarity(before: Tensor, after: Tensor) -> float:
    alignment = LinearCka(before.shape[-1], before.device)
    alignment.add(before[:, None], after[:, None])
    return alignment.similarity()


def _nearest(index: int, kept: Sequence[int]) -> int:
    return min(kept, key=lambda other: (abs(other - index), -other))
