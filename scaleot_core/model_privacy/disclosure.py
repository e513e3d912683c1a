"""What has left of a model when several emulators of it did: the union of what each one reveals, layer by layer.

A plan says what an emulator holds of each original layer, so a plan is all that has to be remembered of an emulator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

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
class DisclosedLayer:
    """What is out of one original layer; the two shares say how much of a compressed one."""

    index: int
    level: DisclosureLevel
    attention_rank_share: float = 0.0
    """The largest share of the rank of its attention matrices that any emulator kept."""
    feed_forward_share: float = 0.0
    """The largest share of its feed-forward part: of the rank, times that of the channels."""

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


def disclosed_union(plans: Sequence[LayerPlan], num_layers: int) -> tuple[DisclosedLayer, ...]:
    """Returns what emulators of these plans, all of one model, reveal together of every original layer.

    The nearest matrices of two ranks are nested, so the higher rank holds all that the lower one does. A kept layer
    counts as the original's own even where a builder trains it afterwards. Whether two emulators kept the same
    channels no plan says: of channels, and of components chosen otherwise than by size, more can be out than this.

    Raises:
        ModelError: a plan is for another number of layers.
    """
    union = [DisclosedLayer(index, DisclosureLevel.NOTHING) for index in range(num_layers)]
    for plan in plans:
        if len(plan.layers) != num_layers:
            raise ModelError(f"a plan is for {len(plan.layers)} layers, the model has {num_layers}: not its emulator's")
        union = [_joined(known, _disclosed(planned)) for known, planned in zip(union, plan.layers, strict=True)]
    return tuple(union)


def verbatim_share(union: Sequence[DisclosedLayer], counts: ParameterCounts) -> float:
    """Returns the share, 0 to 1, of the full model's parameters that are out unchanged, whole matrices only.

    Of one emulator as ScaleOT or plain offsite-tuning builds it, this is ``EmulatorReport.verbatim_share``. Without
    a layer disclosed, nothing is out: embeddings and head leave with an emulator.
    """
    if all(layer.level is DisclosureLevel.NOTHING for layer in union):
        return 0.0
    inside = sum(_verbatim(layer, size) for layer, size in zip(union, counts.layers, strict=True))
    return (counts.outside + inside) / counts.total


def what_would_be_new(plans: Sequence[LayerPlan], plan: LayerPlan) -> tuple[NewDisclosure, ...]:
    """Returns the layers of which an emulator of ``plan`` would reveal more than those of ``plans`` did.

    Without earlier plans everything is new.

    Raises:
        ModelError: the plans are for different numbers of layers.
    """
    num_layers = len(plan.layers)
    before, after = disclosed_union(plans, num_layers), disclosed_union((*plans, plan), num_layers)
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
