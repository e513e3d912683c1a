"""What has left of a model when several emulators of it did: the union of what each one reveals, layer by layer.

A plan says how much an emulator holds of each original layer, and its basis which part: both are all that has to be
remembered of an emulator.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import reduce

from scaleot_core.compression.plan import LayerPlan, LayerRole, PlannedLayer
from scaleot_core.errors import ModelError
from scaleot_core.model_privacy.parameter_counts import LayerParameters, ParameterCounts


class DisclosureLevel(StrEnum):
    """How much of an original layer is out."""

    NOTHING = "nothing"
    STAND_IN = "stand-in"
    """A harmonizer only: it was trained to do what the layer does, but holds no weight of it."""
    COMPRESSED = "compressed"
    """Linear maps at a lower rank or width; norms and biases exact."""
    EXACT = "exact"


_ORDER = tuple(DisclosureLevel)


@dataclass(frozen=True)
class Revealed:
    """What an emulator holds of the full model."""

    plan: LayerPlan
    basis: str
    """What chose the ranks and channels that were kept, by any name: the weights alone, or a public text and settings.

    Of two emulators with one basis the higher share holds all of the lower. With two bases it does not: each keeps
    another part of a matrix, and two halves can be the whole.
    """


@dataclass(frozen=True)
class DisclosedLayer:
    """What is out of one original layer; the two shares say how much of a compressed one."""

    index: int
    level: DisclosureLevel
    attention_rank_share: float = 0.0
    """Of the rank of its attention matrices: in each basis the largest share, added up over the bases, at most 1."""
    feed_forward_share: float = 0.0
    """Likewise of its feed-forward part: the share of the rank, times that of the channels."""

    def reveals_more_than(self, other: "DisclosedLayer") -> bool:
        """Tells whether anything of the layer is out here that is not out in ``other``."""
        return (
            _ORDER.index(self.level) > _ORDER.index(other.level)
            or self.attention_rank_share > other.attention_rank_share
            or self.feed_forward_share > other.feed_forward_share
        )


@dataclass(frozen=True)
class NewDisclosure:
    """A layer of which a plan would reveal more than is out."""

    before: DisclosedLayer
    after: DisclosedLayer
    """Before and plan together."""


def disclosed_union(emulators: Sequence[Revealed], num_layers: int) -> tuple[DisclosedLayer, ...]:
    """Returns what these emulators, all of one model, reveal together of every original layer.

    In one basis the matrices of two ranks are nested, so the higher rank holds all that the lower one does. Over
    several bases shares add up, which is the most that can be out: two emulators at half the rank, each nearest in
    output on a public text of its own, give the whole matrix back. A kept layer counts as the original's own even
    where a builder trains it afterwards.

    Raises:
        ModelError: a plan is for another number of layers.
    """
    nothing = [DisclosedLayer(index, DisclosureLevel.NOTHING) for index in range(num_layers)]
    by_basis: dict[str, list[DisclosedLayer]] = {}
    for emulator in emulators:
        layers = emulator.plan.layers
        if len(layers) != num_layers:
            raise ModelError(f"a plan is for {len(layers)} layers, the model has {num_layers}: not its emulator's")
        known = by_basis.get(emulator.basis, nothing)
        by_basis[emulator.basis] = [
            _joined(one, _disclosed(planned)) for one, planned in zip(known, layers, strict=True)
        ]
    return tuple(_added_up(alike) for alike in zip(nothing, *by_basis.values(), strict=True))


def verbatim_share(union: Sequence[DisclosedLayer], counts: ParameterCounts) -> float:
    """Returns the share, 0 to 1, of the full model's parameters that are out unchanged, whole matrices only.

    Of one emulator as ScaleOT or plain offsite-tuning builds it, this is ``EmulatorReport.verbatim_share``. Without
    a layer disclosed, nothing is out: embeddings and head leave with an emulator.
    """
    if all(layer.level is DisclosureLevel.NOTHING for layer in union):
        return 0.0
    inside = sum(_verbatim(layer, size) for layer, size in zip(union, counts.layers, strict=True))
    return (counts.outside + inside) / counts.total


def what_would_be_new(emulators: Sequence[Revealed], one: Revealed) -> tuple[NewDisclosure, ...]:
    """Returns the layers of which ``one`` would reveal more than ``emulators`` did.

    Without earlier ones everything is new.

    Raises:
        ModelError: the plans are for different numbers of layers.
    """
    num_layers = len(one.plan.layers)
    before, after = disclosed_union(emulators, num_layers), disclosed_union((*emulators, one), num_layers)
    pairs = zip(before, after, strict=True)
    return tuple(NewDisclosure(old, new) for old, new in pairs if new.reveals_more_than(old))


def _disclosed(planned: PlannedLayer) -> DisclosedLayer:
    match planned.role:
        case LayerRole.ADAPTER:
            return _of_shares(planned.index, 1.0, 1.0)
        case LayerRole.KEPT:
            feed_forward = planned.kept_feed_forward_rank_share * planned.kept_channel_share
            return _of_shares(planned.index, planned.kept_rank_share, feed_forward)
        case LayerRole.REPLACED:
            return DisclosedLayer(planned.index, DisclosureLevel.STAND_IN)
        case LayerRole.DROPPED | LayerRole.SHARED:  # a shared layer runs with the weights of another one
            return DisclosedLayer(planned.index, DisclosureLevel.NOTHING)


def _of_shares(index: int, attention: float, feed_forward: float) -> DisclosedLayer:
    level = DisclosureLevel.EXACT if attention == feed_forward == 1.0 else DisclosureLevel.COMPRESSED
    return DisclosedLayer(index, level, attention, feed_forward)


def _added_up(alike: Sequence[DisclosedLayer]) -> DisclosedLayer:
    """Returns what is out of one layer by what is out of it in each basis."""
    attention = _sum_of_shares(layer.attention_rank_share for layer in alike)
    feed_forward = _sum_of_shares(layer.feed_forward_share for layer in alike)
    most = reduce(_joined, alike)
    if most.level is DisclosureLevel.COMPRESSED:
        return _of_shares(most.index, attention, feed_forward)
    return most


def _sum_of_shares(shares: Iterable[float]) -> float:
    """Returns the sum, 1 at the most, and 1 where it comes as near as binary fractions let it: 0.7 + 0.2 + 0.1."""
    total = math.fsum(shares)
    return 1.0 if total > 1 - 1e-9 else total


def _joined(one: DisclosedLayer, other: DisclosedLayer) -> DisclosedLayer:
    attention = max(one.attention_rank_share, other.attention_rank_share)
    feed_forward = max(one.feed_forward_share, other.feed_forward_share)
    level = max(one.level, other.level, key=_ORDER.index)
    if level is DisclosureLevel.COMPRESSED:  # exact attention in one emulator and an exact rest in another add up
        return _of_shares(one.index, attention, feed_forward)
    return DisclosedLayer(one.index, level, attention, feed_forward)


def _verbatim(layer: DisclosedLayer, size: LayerParameters) -> int:
    if layer.level in (DisclosureLevel.NOTHING, DisclosureLevel.STAND_IN):
        return 0
    attention = size.attention if layer.attention_rank_share == 1.0 else 0
    return size.other + attention + (size.feed_forward if layer.feed_forward_share == 1.0 else 0)
