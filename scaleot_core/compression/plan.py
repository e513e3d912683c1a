"""The layer plan: the role and rank of every original layer index. No tensors here.

Importance and the baselines produce a plan; emulator, manifest, adapter and plug-in consume it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from scaleot_core.errors import ModelError


class LayerRole(StrEnum):
    """What becomes of a layer in the emulator."""

    ADAPTER = "adapter"
    """Shipped exact; what the data owner tunes stands in it."""
    KEPT = "kept"
    """Shipped, its attention at the planned rank."""
    REPLACED = "replaced"
    """A harmonizer stands in its place."""
    DROPPED = "dropped"
    """Left out: the identity stands in its place."""


class AdapterRule(StrEnum):
    """Which layers carry the adapter. The paper says the most important ones; the choice is open."""

    MOST_IMPORTANT = "most_important"
    ENDS = "ends"
    SPREAD = "spread"


@dataclass(frozen=True)
class PlannedLayer:
    """One original layer: its index, its role, and the share of attention rank it keeps."""

    index: int
    role: LayerRole
    kept_rank_share: float = 1.0


@dataclass(frozen=True)
class LayerPlan:
    """The role of every original layer, in order of the index."""

    layers: tuple[PlannedLayer, ...]

    def __post_init__(self) -> None:
        if [layer.index for layer in self.layers] != list(range(len(self.layers))):
            raise ModelError("a layer plan must hold every original layer index once, in order")
        for layer in self.layers:
            if not 0.0 <= layer.kept_rank_share <= 1.0:
                raise ModelError(f"layer {layer.index}: kept_rank_share must be 0 to 1, got {layer.kept_rank_share}")

    def indices(self, role: LayerRole) -> tuple[int, ...]:
        """Returns the original indices of the layers with this role."""
        return tuple(layer.index for layer in self.layers if layer.role is role)

    @property
    def adapter_layers(self) -> tuple[int, ...]:
        """The original indices of the adapter layers."""
        return self.indices(LayerRole.ADAPTER)

    def to_json(self) -> list[dict[str, Any]]:
        """Returns the plan as plain JSON values."""
        return [{"index": i.index, "role": i.role.value, "kept_rank_share": i.kept_rank_share} for i in self.layers]

    @classmethod
    def from_json(cls, value: object) -> "LayerPlan":
        """Reads what ``to_json`` wrote; raises ``ModelError`` on anything else."""
        try:
            rows = [PlannedLayer(row["index"], LayerRole(row["role"]), float(row["kept_rank_share"])) for row in value]  # type: ignore[attr-defined]
        except (TypeError, KeyError, ValueError) as error:
            raise ModelError(f"a layer plan is malformed: {error!r}") from error
        return cls(tuple(rows))


def plan_layers(
    scores: Sequence[float],
    *,
    num_adapter_layers: int,
    adapter_rule: AdapterRule,
    replaced_layer_share: float,
    removed_rank_share: float,
) -> LayerPlan:
    """Plans a ScaleOT emulator from the importance scores, a high score meaning important.

    Of the layers that carry no adapter, ``replaced_layer_share`` (the paper's alpha, 0 to 1, rounded down to whole
    layers), the least important first, are replaced; the rest keep ``1 - removed_rank_share`` (1 - beta) of their
    attention rank. Ties go to the lower index.

    Raises:
        ModelError: more adapter layers than layers, or a share outside 0 to 1.
    """
    _check_share("replaced_layer_share", replaced_layer_share)
    _check_share("removed_rank_share", removed_rank_share)
    adapter = adapter_layers(scores, num_adapter_layers, adapter_rule)
    others = sorted((i for i in range(len(scores)) if i not in adapter), key=lambda i: (scores[i], i))
    replaced = frozenset(others[: _rounded_down(replaced_layer_share * len(others))])
    planned = []
    for index in range(len(scores)):
        if index in adapter:
            planned.append(PlannedLayer(index, LayerRole.ADAPTER))
        elif index in replaced:
            planned.append(PlannedLayer(index, LayerRole.REPLACED))
        else:
            planned.append(PlannedLayer(index, LayerRole.KEPT, 1.0 - removed_rank_share))
    return LayerPlan(tuple(planned))


def adapter_layers(scores: Sequence[float], count: int, rule: AdapterRule) -> frozenset[int]:
    """Returns the original indices of the ``count`` layers that carry the adapter.

    ``most_important``: the highest scores. ``ends``: the first and the last, as plain offsite-tuning; of an odd
    count one more at the front. ``spread``: at even distances inside the depth, ends left out, whatever the scores:
    layer ``floor((k + 1) * layers / (count + 1))`` for k from 0 (of 30 layers and four: 6, 12, 18 and 24).

    Raises:
        ModelError: ``count`` is not between 1 and the number of layers.
    """
    total = len(scores)
    if not 1 <= count <= total:
        raise ModelError(f"num_adapter_layers must be 1 to {total}, the model's layers; got {count}")
    match rule:
        case AdapterRule.MOST_IMPORTANT:
            return frozenset(sorted(range(total), key=lambda i: (-scores[i], i))[:count])
        case AdapterRule.ENDS:
            front = count - count // 2
            return frozenset((*range(front), *range(total - count // 2, total)))
        case AdapterRule.SPREAD:
            if count == total:
                return frozenset(range(total))
            return frozenset((k + 1) * total // (count + 1) for k in range(count))


def plan_uniform(
    num_layers: int, *, num_adapter_layers: int, adapter_rule: AdapterRule, dropped_layer_share: float
) -> LayerPlan:
    """Plans plain offsite-tuning: of the layers without an adapter some are left out, at a uniform stride.

    Of these n layers, k = n - floor(share * n) stay, at ``round(i * (n - 1) / (k - 1))`` among them. With the rule
    ``ends`` this is the paper's own scheme; another place for the adapter allows a fair comparison.

    Source: Xiao, Lin, Han (2023, arXiv 2302.04870), LayerDrop. Raises ``ModelError`` as ``plan_layers`` does, and for
    the rule ``most_important``, which needs scores.
    """
    _check_share("replaced_layer_share", dropped_layer_share)
    if adapter_rule is AdapterRule.MOST_IMPORTANT:
        raise ModelError('the builder "uniform" computes no importance: take the adapter rule "ends" or "spread"')
    adapter = adapter_layers([0.0] * num_layers, num_adapter_layers, adapter_rule)
    middle = [i for i in range(num_layers) if i not in adapter]
    kept_count = len(middle) - _rounded_down(dropped_layer_share * len(middle))
    kept = {middle[position] for position in uniform_positions(len(middle), kept_count)}

    def role(index: int) -> LayerRole:
        return LayerRole.ADAPTER if index in adapter else LayerRole.KEPT if index in kept else LayerRole.DROPPED

    return LayerPlan(tuple(PlannedLayer(index, role(index)) for index in range(num_layers)))


def uniform_positions(count: int, kept_count: int) -> list[int]:
    """Returns ``kept_count`` of the positions 0 to ``count - 1`` at a uniform stride, both ends among them."""
    if kept_count <= 1:
        return [0][:kept_count]
    return [round(i * (count - 1) / (kept_count - 1)) for i in range(kept_count)]


def _rounded_down(count: float) -> int:
    return int(count + 1e-9)  # 0.3 * 10 is 2.9999999999999996


def _check_share(name: str, share: float) -> None:
    if not 0.0 <= share <= 1.0:
        raise ModelError(f"{name} must be 0 to 1, got {share}")
