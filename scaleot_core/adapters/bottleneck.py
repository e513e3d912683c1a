"""A bottleneck adapter after a projection, before the residual sum."""

import torch
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """``W_up relu(W_down y + b_down) + b_up``."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(features, width)
        self.up = nn.Linear(width, features)

    def forward(self, y: Tensor) -> Tensor:
        """Returns the change of ``y`` (..., features)."""
        change: Tensor = self.up(torch.relu(self.down(y)))
        return change


class BottleneckedLinear(nn.Module):
    """A projection followed by ``y + W_up relu(W_down y + b_down) + b_up``.

    ``W_up`` and the biases start at zero, so that it is the bare projection until trained. Source: Houlsby et al.
    (2019), who place one after the attention and one after the feed-forward part of every layer, as is done here.
    """

    def __init__(self, linear: nn.Module, features: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.linear = linear
        self.bottleneck = Bottleneck(features, width)
        bound = features**-0.5
        with torch.no_grad():
            for parameter in self.bottleneck.parameters():
                parameter.zero_()
            self.bottleneck.down.weight.copy_((torch.rand(width, features, generator=generator) * 2 - 1) * bound)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the adapted projection of ``x``, in the projection's own type."""
        output: Tensor = self.linear(x)
        change: Tensor = self.bottleneck(output.float())
        return output + change.to(output.dtype)
