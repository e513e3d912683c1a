"""Groups of layers, within which importance scores compare: of each, Dynamic LayerReplace replaces half."""

from itertools import pairwise


def layer_groups(num_layers: int, group_size: int) -> tuple[range, ...]:
    """Returns the positions of each group in a row of ``num_layers``, in order: ``group_size``, the last what is left.

    [open] Where one alone is left it joins the group before: half of a single layer, rounded down, is none, and its
    harmonizer would never learn.
    """
    starts = [start for start in range(0, num_layers, group_size) if start == 0 or start < num_layers - 1]
    return tuple(range(start, end) for start, end in pairwise([*starts, num_layers]))
