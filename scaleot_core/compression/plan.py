"""The layer plan: the role and rank of every original layer index. No tensors here.

Builders produce a plan; emulator, manifest, adapter and plug-in consume it.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from scaleot_core.compression.layer_groups import layer_groups
from scaleot_core.errors import ModelError


class LayerRole(StrEnum):
    """What becomes of a layer in the emulator."""

    ADAPTER = "adapter"
    """Shipped exact; what the data owner tunes stands in it."""
    KEPT = "kept"
    """Shipped, its linear maps at the planned ranks and widths."""
    REPLACED = "replaced"
    """A harmonizer stands in its place."""
    DROPPED = "dropped"
    """Left out: the identity stands in its place."""
    SHARED = "shared"
    """Left out: it runs with the weights of a kept layer."""


class RankTarget(StrEnum):
    """Whose rank is reduced. The paper compresses attention alone, and shows that the other two hurt."""

    ATTENTION = "attention"
    FEED_FORWARD = "ffn"
    BOTH = "both"

    def kept_shares(self, removed_share: float) -> tuple[float, float]:
        """Returns the shares that attention and feed-forward part keep where ``removed_share`` is taken from these.

        Raises:
            ModelError: a share outside 0 to 1.
        """
        check_share("removed_rank_share", removed_share)
        kept = 1.0 - removed_share
        return kept if self is not self.FEED_FORWARD else 1.0, kept if self is not self.ATTENTION else 1.0


@dataclass(frozen=True)
class PlannedLayer:
    """One original layer: its index, its role, and what a kept one keeps of itself."""

    index: int
    role: LayerRole
    kept_rank_share: float = 1.0
    """Share of the rank of every attention matrix, 0 (rank 1) to 1 (exact)."""
    kept_feed_forward_rank_share: float = 1.0
    """The same for every matrix of the feed-forward part."""
    kept_channel_share: float = 1.0
    """Share of the inner channels of the feed-forward part, 0 (one channel) to 1 (all)."""
    shared_from: int | None = None
    """The kept layer whose weights a shared one runs with."""


_SHARES = ("kept_rank_share", "kept_feed_forward_rank_share", "kept_channel_share")


@dataclass(frozen=True)
class LayerPlan:
    """The role of every original layer, in order of the index."""

    layers: tuple[PlannedLayer, ...]

    def __post_init__(self) -> None:
        if [layer.index for layer in self.layers] != list(range(len(self.layers))):
            raise ModelError("a layer plan must hold every original layer index once, in order")
        for layer in self.layers:
            for name in _SHARES:
                check_share(f"layer {layer.index}: {name}", getattr(layer, name))
            self._check_sharing(layer)

    def _check_sharing(self, layer: PlannedLayer) -> None:
        if layer.role is not LayerRole.SHARED:
            if layer.shared_from is not None:
                raise ModelError(f"layer {layer.index}: shared_from stands with the role shared, got {layer.role}")
            return
        source = layer.shared_from
        if source not in self.indices(LayerRole.KEPT):
            raise ModelError(f"layer {layer.index}: shared_from must be the index of a kept layer, got {source}")

    def indices(self, role: LayerRole) -> tuple[int, ...]:
        """Returns the original indices of the layers with this role."""
        return tuple(layer.index for layer in self.layers if layer.role is role)

    @property
    def adapter_layers(self) -> tuple[int, ...]:
        """The original indices of the adapter layers."""
        return self.indices(LayerRole.ADAPTER)

    @property
    def shared_from(self) -> dict[int, int]:
        """The kept layer that each shared layer runs with, by original index."""
        return {layer.index: layer.shared_from for layer in self.layers if layer.shared_from is not None}

    def to_json(self) -> list[dict[str, Any]]:
        """Returns the plan as plain JSON values; what has its default, but for the first three, is left out."""
        optional = {field.name: field.default for field in fields(PlannedLayer)[3:]}
        return [
            {name: value for name, value in asdict(layer).items() if name not in optional or value != optional[name]}
            for layer in self.layers
        ]

    @classmethod
    def from_json(cls, value: object) -> "LayerPlan":
        """Reads what ``to_json`` wrote; raises ``ModelError`` on anything else."""
        try:
            return cls(tuple(_layer_from_json(row) for row in value))  # type: ignore[attr-defined]
        except (TypeError, KeyError, ValueError) as error:
            raise ModelError(f"a layer plan is malformed: {error!r}") from error


def _layer_from_json(row: dict[str, Any]) -> PlannedLayer:
    shares = {name: float(row[name]) for name in _SHARES if name == "kept_rank_share" or name in row}
    return PlannedLayer(**{**row, "role": LayerRole(row["role"]), **shares})


def plan_layers(
    scores: Sequence[float],
    *,
    adapter: Collection[int],
    replaced_layer_share: float,
    removed_rank_share: float,
    rank_target: RankTarget = RankTarget.ATTENTION,
    replaced_role: LayerRole = LayerRole.REPLACED,
    group_size: int | None = None,
) -> LayerPlan:
    """Plans an emulator from the importance scores, a high score meaning important.

    Of the layers that carry no adapter, ``replaced_layer_share`` (the paper's alpha, 0 to 1, rounded down to whole
    layers), the least important first, get ``replaced_role``; the rest keep ``1 - removed_rank_share`` (1 - beta) of
    the rank of what ``rank_target`` names. Ties go to the lower index.

    Scores that were learnt in fixed groups of ``group_size`` neighbours (``layer_groups``) compare within a group
    alone: then every group gives its least important layer before any gives its second.

    Raises:
        ModelError: a share outside 0 to 1.
    """
    check_share("replaced_layer_share", replaced_layer_share)
    ascending = sorted((i for i in range(len(scores)) if i not in adapter), key=lambda i: (scores[i], i))
    groups = (range(len(scores)),) if group_size is None else layer_groups(len(scores), group_size)
    places = {i: place for group in groups for place, i in enumerate(i for i in ascending if i in group)}
    others = sorted(ascending, key=lambda i: (places[i], i))
    replaced = frozenset(others[: rounded_down(replaced_layer_share * len(others))])
    roles = {
        index: LayerRole.ADAPTER if index in adapter else replaced_role if index in replaced else LayerRole.KEPT
        for index in range(len(scores))
    }
    return plan_of_roles(roles, removed_rank_share=removed_rank_share, rank_target=rank_target)


def plan_of_roles(
    roles: dict[int, LayerRole],
    *,
    removed_rank_share: float = 0.0,
    rank_target: RankTarget = RankTarget.ATTENTION,
    shared_from: dict[int, int] | None = None,
) -> LayerPlan:
    """Plans layers of these roles, the kept ones with ``1 - removed_rank_share`` of the rank of ``rank_target``.

    Raises:
        ModelError: a share outside 0 to 1, or a missing index.
    """
    attention, feed_forward = rank_target.kept_shares(removed_rank_share)
    planned = []
    for index, role in sorted(roles.items()):
        if role is LayerRole.KEPT:
            planned.append(PlannedLayer(index, role, attention, feed_forward))
        else:
            planned.append(PlannedLayer(index, role, shared_from=(shared_from or {}).get(index)))
    return LayerPlan(tuple(planned))


def rounded_down(count: float) -> int:
    """Returns a whole number of layers, ranks or channels; 0.3 * 10, which is 2.9999999999999996, gives 3."""
    return int(count + 1e-9)


def check_share(name: str, share: float) -> None:
    """Raises ``ModelError`` where ``share`` is not 0 to 1."""
    if not 0.0 <= share <= 1.0:
        raise ModelError(f"{name} must be 0 to 1, got {share}")
