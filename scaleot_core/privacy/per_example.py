"""The gradient of each example alone: by Opacus' hooks where they are proven right, else one example at a time.

Hooks save what goes into each trained linear map forward and comes out of it backward, and multiply the two for each
row of a batch: one backward pass for all rows. They cannot see into parametrised weights, a weight used by hand or
recomputed activations. Whether they are right is not believed but tried, on public random tokens, in ``choose_way``.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from opacus.grad_sample import GradSampleHooks
from torch import Tensor, nn

from scaleot_core.adapters.adapter import AttachedAdapter
from scaleot_core.errors import ModelError
from scaleot_core.models.attention import attention_for_training
from scaleot_core.models.layout import layout_for
from scaleot_core.models.recomputation import recomputed_activations
from scaleot_core.privacy.losses import example_losses
from scaleot_core.privacy.physical_batches import PhysicalBatch
from scaleot_core.shapes import TensorDict

_LEFT_BEHIND = ("activations", "max_batch_len")
"""What Opacus may leave on a module when a pass is broken off."""


@dataclass(frozen=True)
class ExampleWay:
    """How the examples' gradients are computed. What they are is the same, up to rounding."""

    rows: int
    """Of every physical batch; 1 is the loop, one example at a time."""
    uses_hooks: bool
    reason: str
    """Why this way, to be announced."""
    recomputes_activations: bool = False


def gradients_of(attached: AttachedAdapter, batch: PhysicalBatch, way: ExampleWay) -> TensorDict:
    """Returns the gradients of the losses of a batch's examples: tensors (examples, *shape of the parameter), float32.

    The parameters' own ``grad`` is left as it was, and no hook stays.

    Raises:
        ModelError: what came is not one gradient for each row, so that it could not be clipped for each example.
    """
    gradients = _by_hooks(attached, batch) if way.uses_hooks else _alone(attached, batch, way)
    rows = len(batch.input_ids)
    for name, gradient in gradients.items():
        if gradient.shape != (rows, *attached.trainable()[name].shape):
            raise ModelError(f"the gradients of {name}: expected one for each of {rows} rows, got {gradient.shape}")
    return {name: gradient[: batch.num_examples].float() for name, gradient in gradients.items()}


def _alone(attached: AttachedAdapter, batch: PhysicalBatch, way: ExampleWay) -> TensorDict:
    """Returns the gradient of a batch of one row, with nothing but autograd: right for every model."""
    model, parameters = attached.model, attached.trainable()
    recomputed = recomputed_activations(model, layout_for(model.config))
    with recomputed if way.recomputes_activations else nullcontext(), attention_for_training(model, batch.input_ids):
        loss = example_losses(model, batch).sum()
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return {name: gradient.unsqueeze(0) for name, gradient in zip(parameters, gradients, strict=True)}


def _by_hooks(attached: AttachedAdapter, batch: PhysicalBatch) -> TensorDict:
    parameters = attached.trainable()
    with _hooked(attached, rows=len(batch.input_ids)), warnings.catch_warnings():
        # The first adapted layer's input wants no gradient, and its hooks need none of it.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        loss = example_losses(attached.model, batch)[: batch.num_examples].sum()
        torch.autograd.grad(loss, list(parameters.values()))
        return {
            name: parameter.grad_sample  # type: ignore[attr-defined] # Opacus puts it there
            for name, parameter in parameters.items()
        }


class _RowHooks(GradSampleHooks):  # type: ignore[misc] # Opacus has no types
    """Opacus' hooks for models that flatten rows and tokens before a linear map, as OPT does before its own."""

    def __init__(self, module: nn.Module, *, rows: int) -> None:
        self._rows = rows
        super().__init__(module, loss_reduction="sum")

    def capture_activations_hook(self, module: nn.Module, forward_input: tuple[Tensor, ...], output: Tensor) -> None:
        super().capture_activations_hook(module, [self._in_rows(tensor) for tensor in forward_input], output)

    def capture_backprops_hook(
        self, module: nn.Module, forward_input: object, forward_output: tuple[Tensor, ...], **settings: Any
    ) -> None:
        super().capture_backprops_hook(module, forward_input, (self._in_rows(forward_output[0]),), **settings)

    def _in_rows(self, tensor: Tensor) -> Tensor:
        return tensor if tensor.shape[0] == self._rows else tensor.reshape(self._rows, -1, tensor.shape[-1])


@contextmanager
def _hooked(attached: AttachedAdapter, *, rows: int) -> Iterator[None]:
    """Attaches the hooks; afterwards model and parameters are as they were.

    Opacus is shown the owners alone: to look through the whole model takes it longer than a few rows do. It looks only
    at modules in training mode; the owners are linear maps, which behave alike in both modes.
    """
    owners = [module for _, module in owners_of(attached)]
    modes = [module.training for module in owners]
    for module in owners:
        module.training = True
    hooks = _RowHooks(nn.ModuleList(owners), rows=rows)
    try:
        yield
    finally:
        hooks.cleanup()
        for module, mode in zip(owners, modes, strict=True):
            module.training = mode
            for name in _LEFT_BEHIND:
                vars(module).pop(name, None)


def owners_of(attached: AttachedAdapter) -> list[tuple[str, nn.Module]]:
    """Returns the modules that hold the adapter's trained parameters, with their paths."""
    trained = {id(parameter) for parameter in attached.trainable().values()}
    return [
        (path, module)
        for path, module in attached.model.named_modules()
        if any(id(parameter) in trained for parameter in module.parameters(recurse=False))
    ]
