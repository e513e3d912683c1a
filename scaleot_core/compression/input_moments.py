"""Second moments of what linear maps are fed, added up batch by batch."""

import torch
from torch import Tensor

from scaleot_core.shapes import Matrix


class OuterProductMean:
    """The sum over tokens of ``left right^T`` over ``count``, float32: the mean where there are so many tokens."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.value = torch.zeros(())

    def add(self, left: Matrix, right: Matrix) -> None:
        """Adds tokens, one in each column of ``left`` (a, tokens) and of ``right`` (b, tokens)."""
        self.value = self.value.to(left.device) + left @ right.T / self._count


class LayerInputs:
    """What the linear maps of one layer are fed; maps that are fed the same tensor share one ``x x^T``."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._means: dict[str, OuterProductMean] = {}
        self._last: tuple[Tensor, OuterProductMean] | None = None

    def add(self, name: str, fed: Tensor) -> OuterProductMean:
        """Adds what the map ``name`` is fed, ``fed`` (..., in), unless the map before it was fed the same tensor."""
        if self._last is not None and self._last[0] is fed:
            mean = self._last[1]
        else:
            mean = self._means.get(name) or OuterProductMean(self._count)
            columns = fed.detach().flatten(0, -2).T.float()
            mean.add(columns, columns)
            self._last = (fed, mean)
        self._means[name] = mean
        return mean

    def forget(self) -> None:
        """Lets go of the batch's activations."""
        self._last = None

    def moments(self, name: str) -> Matrix:
        """Returns the sum or mean of ``x x^T`` (in, in) of the map ``name``."""
        return self._means[name].value
