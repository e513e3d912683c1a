"""The light networks that stand where an emulator has no decoder layer of its own."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import Cache

from scaleot_core.shapes import HiddenStates


class Harmonizer(nn.Module):
    """A residual bottleneck in place of a decoder layer: ``h(x) = x + W_up relu(W_down x)``.

    Has the call signature of any decoder layer and returns what the family's layer returns. ``W_up`` starts at
    zero, so that a fresh harmonizer is the identity; ``W_down`` starts random, else neither would ever learn.
    Keeps the key-value cache's count of tokens, because models read their position from a layer's cache.

    Source: ScaleOT (Yao et al., 2024), Dynamic LayerReplace. The paper leaves the rank open.
    """

    def __init__(self, hidden_size: int, rank: int, *, layer_index: int, returns_tuple: bool) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, rank, bias=False)
        self.up = nn.Linear(rank, hidden_size, bias=False)
        nn.init.zeros_(self.up.weight)
        self._layer_index = layer_index
        self._returns_tuple = returns_tuple

    def forward(
        self, hidden_states: HiddenStates, *args: object, **kwargs: object
    ) -> HiddenStates | tuple[HiddenStates, None]:
        """Returns the harmonized hidden states, where they came from; of the other arguments only a cache is read."""
        count_tokens(hidden_states, self._layer_index, (*args, *kwargs.values()))
        weight = self.down.weight
        inner = torch.relu(self.down(hidden_states.to(weight.device, weight.dtype)))
        output = hidden_states + self.up(inner).to(hidden_states.device, hidden_states.dtype)
        return (output, None) if self._returns_tuple else output


class DroppedLayer(nn.Module):
    """The identity, in place of a decoder layer that an emulator simply leaves out."""

    def __init__(self, *, layer_index: int, returns_tuple: bool) -> None:
        super().__init__()
        self._layer_index = layer_index
        self._returns_tuple = returns_tuple

    def forward(
        self, hidden_states: HiddenStates, *args: object, **kwargs: object
    ) -> HiddenStates | tuple[HiddenStates, None]:
        """Returns the hidden states as they came."""
        count_tokens(hidden_states, self._layer_index, (*args, *kwargs.values()))
        return (hidden_states, None) if self._returns_tuple else hidden_states


def count_tokens(hidden_states: Tensor, layer_index: int, arguments: Iterable[object]) -> None:
    """Tells the cache among ``arguments``, if there is one, how many tokens went by: keys and values of width 1.

    Not of width 0: transformers takes an entry without elements for an empty one, and counts no tokens.
    """
    for argument in arguments:
        if isinstance(argument, Cache):
            unread = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            argument.update(unread, unread, layer_index)
