"""Slope and curvature of the loss around single matrices, from one forward and backward pass over public text.

The curvature is Kronecker-factored (KFAC; Martens and Grosse, 2015): around the weight of ``y = W x`` the Hessian is
taken as the Fisher matrix, and that as the product of two small matrices, ``H vec(D) = vec(B D A)``, with A the mean
over tokens of ``x x^T`` and B that of ``g g^T``, g the gradient of the loss with respect to y.

[open] Differs from the sources: the Fisher matrix is the empirical one, of the text's own next tokens and not of tokens
drawn from the model (which would take a second pass); every token counts as an example of its own; no damping.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scaleot_core.compression.finiteness import check_finite
from scaleot_core.compression.input_moments import LayerInputs, OuterProductMean
from scaleot_core.compression.rank import ProjectionBlock, split_fused
from scaleot_core.models.families import Fusion
from scaleot_core.models.layout import DecoderLayout
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import Reporter
from scaleot_core.shapes import Matrix, TokenBlocks


@dataclass(frozen=True)
class Curvature:
    """The loss around one matrix (out, in), float32; the loss is the mean cross-entropy of a next token."""

    inputs: Matrix
    """A, (in, in): the mean of ``x x^T`` over all tokens that have a next one."""
    output_gradients: Matrix
    """B, (out, out): the mean of ``g g^T`` over these tokens, g being that of the text's summed loss."""
    gradient: Matrix
    """(out, in): the gradient of the mean loss."""


def measure_curvature(
    full: LanguageModel,
    public_blocks: TokenBlocks,
    *,
    layers: Collection[int],
    names: Collection[str],
    batch_size: int,
    reporter: Reporter,
) -> dict[ProjectionBlock, Curvature]:
    """Returns the curvature around the linear maps ``names`` of ``layers``; a fused projection gives three.

    No gradient is stored in the model, which is frozen and stays so. Memory holds three matrices for each map, its
    inputs' only once where several maps share them.

    Raises:
        ModelError: a loss is not finite.
    """
    num_predictions = public_blocks.shape[0] * (public_blocks.shape[1] - 1)
    means: dict[ProjectionBlock, _Means] = {}
    recorders = [_LayerRecorder(means, full.layout, index, num_predictions) for index in layers]
    hooks = [
        full.layout.layer(full.model, recorder.index).get_submodule(name).register_forward_hook(recorder.hook(name))
        for recorder in recorders
        for name in names
    ]
    batches = torch.split(public_blocks, batch_size)
    try:
        with reporter.stage("curvature", steps=len(batches)) as stage:
            for batch in batches:
                loss = _back_propagate(full, batch)
                check_finite([loss], "the loss", "on public text")
                for recorder in recorders:
                    recorder.inputs.forget()
                stage.advance(loss=loss / (batch.shape[0] * (batch.shape[1] - 1)))
    finally:
        for hook in hooks:
            hook.remove()
    return {
        place: Curvature(mean.inputs.value, mean.output_gradients.value, mean.gradient.value)
        for place, mean in means.items()
    }


def _back_propagate(full: LanguageModel, batch: TokenBlocks) -> float:
    """Sends the gradient of the batch's summed loss back to the embeddings; returns that loss."""
    ids = batch.to(full.model.device)
    embedded = full.model.get_input_embeddings()(ids[:, :-1]).detach().requires_grad_(True)
    logits = full.model(inputs_embeds=embedded, use_cache=False).logits
    targets = ids[:, 1:].flatten().to(logits.device)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets, reduction="sum")
    torch.autograd.grad(loss, embedded)
    return float(loss.detach())


class _Means:
    """The three means around one matrix."""

    def __init__(self, inputs: OuterProductMean, count: int) -> None:
        self.inputs = inputs
        self.output_gradients, self.gradient = OuterProductMean(count), OuterProductMean(count)


class _LayerRecorder:
    """Records one layer's inputs going forward and its output gradients coming back."""

    def __init__(
        self, means: dict[ProjectionBlock, _Means], layout: DecoderLayout, index: int, num_predictions: int
    ) -> None:
        self.index = index
        self._means, self._layout, self._count = means, layout, num_predictions
        self.inputs = LayerInputs(num_predictions)

    def hook(self, name: str):  # type: ignore[no-untyped-def]
        fusion = self._layout.family.fusion if name == self._layout.attention_linears[0] else None

        def record(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = args[0].detach().flatten(0, -2)
            inputs = self.inputs.add(name, args[0])

            def take(gradient: Tensor) -> None:
                self._add_gradients(name, fusion, inputs, x.T.float(), gradient.flatten(0, -2).T.float())

            output.register_hook(take)  # type: ignore[no-untyped-call]

        return record

    def _add_gradients(
        self, name: str, fusion: Fusion | None, inputs: OuterProductMean, x: Matrix, gradients: Matrix
    ) -> None:
        heads = self._layout.num_attention_heads
        parts = split_fused(gradients, fusion, heads) if fusion else [gradients]
        for number, part in enumerate(parts):
            place = ProjectionBlock(self.index, name, number)
            means = self._means.setdefault(place, _Means(inputs, self._count))
            means.output_gradients.add(part, part)
            means.gradient.add(part, x)
