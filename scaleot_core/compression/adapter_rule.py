"""Where the adapter belongs: the rules that choose the layers which carry it. No tensors here.

The paper says the most important ones (ScaleOT, section on the emulator); what importance means for *tuning* a layer
it leaves open, and so do we: every rule is a row of the comparison.
"""

from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise

from scaleot_core.errors import ModelError


class AdapterRule(StrEnum):
    """Which layers carry the adapter."""

    MOST_IMPORTANT = "most_important"
    """The highest importance scores: the layers that are hardest to replace."""
    ENDS = "ends"
    """The first and the last, as plain offsite-tuning; of an odd count one more at the front."""
    SPREAD = "spread"
    """At even distances inside the depth, ends left out, whatever the scores."""
    SPREAD_BY_IMPORTANCE = "spread_by_importance"
    """In each of as many blocks of the depth, the layer with the highest importance score."""
    GRADIENT = "gradient"
    """In each of as many blocks of the depth, the layer on which a fresh adapter has the largest gradient."""


BY_IMPORTANCE = frozenset({AdapterRule.MOST_IMPORTANT, AdapterRule.SPREAD_BY_IMPORTANCE})
"""The rules that ask for importance scores."""


def adapter_layers(rule: AdapterRule, count: int, num_layers: int, scores: Sequence[float] | None) -> frozenset[int]:
    """Returns the original indices of the ``count`` layers that carry the adapter.

    ``scores``, one per layer, are importance for the rules of ``BY_IMPORTANCE`` and the gradient's size for
    ``gradient``; the other rules take none. ``spread`` gives layer ``floor((k + 1) * layers / (count + 1))`` for k from
    0 (of 30 layers and four: 6, 12, 18, 24). ``spread_by_importance`` and ``gradient`` cut the depth in ``count``
    blocks as equal as can be. Ties go to the lower index.

    Raises:
        ModelError: ``count`` is not between 1 and the number of layers, or a rule that needs scores has none.
    """
    if not 1 <= count <= num_layers:
        raise ModelError(f"num_adapter_layers must be 1 to {num_layers}, the model's layers; got {count}")
    match rule:
        case AdapterRule.ENDS:
            front = count - count // 2
            return frozenset((*range(front), *range(num_layers - count // 2, num_layers)))
        case AdapterRule.SPREAD:
            if count == num_layers:
                return frozenset(range(num_layers))
            return frozenset((k + 1) * num_layers // (count + 1) for k in range(count))
        case AdapterRule.MOST_IMPORTANT:
            known = _needed(rule, scores, num_layers)
            return frozenset(sorted(range(num_layers), key=lambda i: (-known[i], i))[:count])
        case AdapterRule.SPREAD_BY_IMPORTANCE | AdapterRule.GRADIENT:
            known = _needed(rule, scores, num_layers)
            bounds = [k * num_layers // count for k in range(count + 1)]
            blocks = (range(first, end) for first, end in pairwise(bounds))
            return frozenset(max(block, key=lambda i: (known[i], -i)) for block in blocks)


def _needed(rule: AdapterRule, scores: Sequence[float] | None, num_layers: int) -> Sequence[float]:
    if scores is None or len(scores) != num_layers:
        got = "none" if scores is None else str(len(scores))
        raise ModelError(f"the adapter rule {rule.value} needs a score for each of {num_layers} layers, got {got}")
    return scores
