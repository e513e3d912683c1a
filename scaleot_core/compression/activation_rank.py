"""Low-rank maps that are nearest in what they put out, not in their weights.

Not part of ScaleOT, which truncates singular values. On real activations a few directions carry most of the input, so
weights that look small can matter and large ones not; the idea is that of activation-aware truncation (for instance
SVD-LLM, arXiv 2403.07378), here without a factorisation of the moments: the best map is a projection of the old one.
"""

import torch
from torch import Tensor, nn

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

    ``names`` are the linear maps inside a layer whose inputs are recorded: the ones that will be compressed.
    """
    moments = _collect(full, public_blocks, names, batch_size, reporter)

    def factorize(place: ProjectionBlock, weight: Matrix, rank: int) -> tuple[Matrix, Matrix]:
        return truncate_rank_in_output(weight, moments[place.layer, place.name].value, rank)

    return factorize


class _Moments:
    """The sum of x x^T over tokens, (in, in), float32: one for all maps that are fed the same tensor."""

    def __init__(self) -> None:
        self.value = torch.zeros(())

    def add(self, x: Tensor) -> None:
        tokens = x.flatten(0, -2).float()
        self.value = self.value.to(x.device) + tokens.T @ tokens


def _collect(
    full: LanguageModel, blocks: TokenBlocks, names: tuple[str, ...], batch_size: int, reporter: Reporter
) -> dict[tuple[int, str], _Moments]:
    moments: dict[tuple[int, str], _Moments] = {}
    hooks = []
    for index in range(full.layout.num_layers):
        recorder = _LayerRecorder(moments, index)
        layer = full.layout.layer(full.model, index)
        hooks += [layer.get_submodule(name).register_forward_pre_hook(recorder.hook(name)) for name in names]
    batches = torch.split(blocks, batch_size)
    try:
        with torch.inference_mode(), reporter.stage("rank", steps=len(batches)) as stage:
            for batch in batches:
                full.model(input_ids=batch.to(full.model.device), use_cache=False, logits_to_keep=1)
                stage.advance()
    finally:
        for hook in hooks:
            hook.remove()
    return moments


class _LayerRecorder:
    """Adds up one layer's inputs; query, key and value are fed the same tensor, which is added up once."""

    def __init__(self, moments: dict[tuple[int, str], _Moments], index: int) -> None:
        self._moments, self._index = moments, index
        self._last: tuple[Tensor, _Moments] | None = None

    def hook(self, name: str):  # type: ignore[no-untyped-def]
        def record(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            key = (self._index, name)
            if self._last is not None and self._last[0] is args[0]:
                self._moments[key] = self._last[1]
                return
            moments = self._moments.setdefault(key, _Moments())
            moments.add(args[0])
            self._last = (args[0], moments)

        return record
