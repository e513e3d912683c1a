"""Low-rank maps that are nearest in what they put out, not in their weights.

Not part of ScaleOT, which truncates singular values. On real activations a few directions carry most of the input, so
weights that look small can matter and large ones not; the idea is that of activation-aware truncation (for instance
SVD-LLM, arXiv 2403.07378), here without a factorisation of the moments: the best map is a projection of the old one.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from scaleot_core.compression.activations import read_blocks
from scaleot_core.compression.finiteness import check_finite
from scaleot_core.compression.input_moments import LayerInputs
from scaleot_core.compression.rank import Factorize, ProjectionBlock
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import Reporter
from scaleot_core.shapes import Matrix, TokenBlocks


def truncate_rank_in_output(weight: Matrix, input_moments: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """Returns ``up`` (out, rank), orthonormal, and ``down`` (rank, in): of all maps of that rank the nearest in output.

    Nearest in the sum over tokens of ``|W x - up down x|^2``, where ``input_moments`` (in, in) is the sum of
    ``x x^T``. The best map is ``U U^T W``, with ``U`` the leading eigenvectors of ``W M W^T``. Computed in float64.
    """
    exact = weight.double()
    outputs = exact @ input_moments.double() @ exact.T
    _, vectors = torch.linalg.eigh(outputs)
    up = vectors[:, -rank:].flip(-1)
    return up.float(), (up.T @ exact).float()


def nearest_in_output(
    full: LanguageModel, public_blocks: TokenBlocks, names: tuple[str, ...], *, batch_size: int, reporter: Reporter
) -> Factorize:
    """Reads the public text once and returns the factorisation that is nearest in output on it.

    ``names`` are the linear maps inside a layer whose inputs are recorded: the ones that will be compressed. The
    factorisation raises ``ModelError`` where an input of the map was not finite.
    """
    inputs = _record_inputs(full, public_blocks, names, batch_size, reporter)

    def factorize(place: ProjectionBlock, weight: Matrix, rank: int) -> tuple[Matrix, Matrix]:
        moments = inputs[place.layer].moments(place.name)
        where = f"at {place.name} of layer {place.layer} on public text"
        check_finite([float(moments.abs().amax())], "the second moment of the inputs", where)
        return truncate_rank_in_output(weight, moments, rank)

    return factorize


def _record_inputs(
    full: LanguageModel, blocks: TokenBlocks, names: tuple[str, ...], batch_size: int, reporter: Reporter
) -> list[LayerInputs]:
    layers = [full.layout.layer(full.model, index) for index in range(full.layout.num_layers)]
    inputs = [LayerInputs(count=1) for _ in layers]
    hooks = [
        layer.get_submodule(name).register_forward_pre_hook(_recorder(name, recorded))
        for layer, recorded in zip(layers, inputs, strict=True)
        for name in names
    ]
    try:
        read_blocks(full, blocks, batch_size=batch_size, reporter=reporter, stage="rank")
    finally:
        for hook in hooks:
            hook.remove()
    return inputs


def _recorder(name: str, inputs: LayerInputs) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def record(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs.add(name, args[0])

    return record
