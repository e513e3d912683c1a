"""The layers before the adapter's first: what leaves them is the same at every value of the adapter."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scaleot_core.adapters.adapter import AttachedAdapter
from scaleot_core.models.forward import replaced_forward
from scaleot_core.models.layout import layout_for
from scaleot_core.privacy.losses import ExampleLosses, example_losses
from scaleot_core.privacy.physical_batches import PhysicalBatch


class FrozenPrefix:
    """Losses of a few batches at many values of the adapter, the frozen layers before it run once for each batch.

    Losses are the same to the last bit as without it. Kept is one hidden state for each token of the batches.
    """

    def __init__(self, attached: AttachedAdapter, batches: Sequence[PhysicalBatch]) -> None:
        self._model, self._batches = attached.model, batches
        layout = layout_for(attached.model.config)
        first = min(int(name.partition(".")[0]) for name in attached.trainable())
        self._layers = [layout.layer(attached.model, index) for index in range(first)]
        self._outputs: dict[int, Any] = {}

    def losses(self) -> Tensor:
        """Returns the loss of every example at the adapter's present value, (examples,), batch by batch."""
        with torch.inference_mode():
            computed = [self._losses_of(number) for number in range(len(self._batches))]
            real = [losses[: batch.num_examples] for losses, batch in zip(computed, self._batches, strict=True)]
            return torch.cat(real)

    def _losses_of(self, number: int) -> ExampleLosses:
        batch = self._batches[number]
        if not self._layers:
            return example_losses(self._model, batch)
        if number in self._outputs:
            output = self._outputs[number]
            with replaced_forward(self._layers, lambda _: lambda *_args, **_kwargs: output):
                return example_losses(self._model, batch)
        handle = self._layers[-1].register_forward_hook(lambda *call: self._outputs.update({number: call[-1]}))
        try:
            return example_losses(self._model, batch)
        finally:
            handle.remove()
