"""Harmonizers from one pass over public text: the best low-rank linear stand-in of a layer, by ridge regression.

Not part of ScaleOT, whose harmonizers start as the identity; the idea of a closed form is that of ReplaceMe
(arXiv 2505.02819), here with the rank of the harmonizer as a bound. Gradient descent goes on from there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from scaleot_core.compression.activations import observe_layers
from scaleot_core.compression.finiteness import check_finite
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import Reporter
from scaleot_core.shapes import HiddenStates, Matrix, TokenBlocks

RIDGE = 1e-4
"""Regularisation, as a share of the mean variance of a layer's input."""


@dataclass
class _Moments:
    """Sums over tokens of x x^T and x (y - x)^T, float64 (hidden, hidden), each token weighted by 1 / |x|^2."""

    inputs: Tensor
    changes: Tensor

    def add(self, x: HiddenStates, y: HiddenStates) -> None:
        scale = x.float().norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        inputs = (x.float() / scale).flatten(0, -2)
        changes = ((y.float() - x.float()) / scale).flatten(0, -2)
        self.inputs += (inputs.T @ inputs).double()
        self.changes += (inputs.T @ changes).double()


def fit_harmonizers(
    full: LanguageModel, public_blocks: TokenBlocks, rank: int, *, batch_size: int, reporter: Reporter
) -> list[tuple[Matrix, Matrix]]:
    """Returns ``down`` (rank, hidden) and ``up`` (hidden, rank) for every layer, float32.

    The change y - x that a layer makes is regressed on its input x over all tokens of ``public_blocks`` (blocks,
    tokens), each token weighted by 1 / |x|^2 so that the few with huge activations do not rule; of the regression the
    best approximation of rank floor(rank / 2) is kept (reduced-rank regression), and each of its directions is carried
    by a pair of rectified units, because relu(z) - relu(-z) = z. Units without a direction, one of
    an odd rank and all past twice the hidden size, are zero and change nothing.

    Raises:
        ModelError: a layer's input or output is not finite.
    """
    moments = _collect(full, public_blocks, batch_size, reporter)
    for index, layer in enumerate(moments):
        largest = (float(sums.abs().amax()) for sums in (layer.inputs, layer.changes))
        check_finite(largest, "the second moment of the hidden states", f"at layer {index} on public text")
    return [_solve(layer.inputs, layer.changes, rank) for layer in moments]


def _collect(full: LanguageModel, blocks: TokenBlocks, batch_size: int, reporter: Reporter) -> list[_Moments]:
    moments = [
        _no_moments(full.layout.hidden_size, full.layout.layer_device(full.model, index))
        for index in range(full.layout.num_layers)
    ]

    def add(index: int, x: HiddenStates, y: HiddenStates) -> None:
        moments[index].add(x, y)

    observe_layers(full, blocks, add, batch_size=batch_size, reporter=reporter, stage="closed form")
    return moments


def _no_moments(hidden: int, device: torch.device) -> _Moments:
    inputs, changes = (torch.zeros(hidden, hidden, dtype=torch.float64, device=device) for _ in range(2))
    return _Moments(inputs, changes)


def _solve(inputs: Tensor, changes: Tensor, rank: int) -> tuple[Matrix, Matrix]:
    hidden = inputs.shape[0]
    directions = min(rank // 2, hidden)
    ridge = RIDGE * inputs.diagonal().mean() * torch.eye(hidden, dtype=inputs.dtype, device=inputs.device)
    regression = torch.linalg.solve(inputs + ridge, changes)
    predicted = regression.T @ inputs @ regression
    _, vectors = torch.linalg.eigh(predicted)
    out = vectors[:, hidden - directions :].flip(-1)
    into = (regression @ out).T
    balance = (into.norm(dim=1) / out.norm(dim=0)).clamp_min(torch.finfo(inputs.dtype).tiny).sqrt()
    into, out = into / balance[:, None], out * balance
    padding = rank - 2 * directions
    down = torch.cat([into, -into, into.new_zeros(padding, hidden)])
    up = torch.cat([out, -out, out.new_zeros(hidden, padding)], dim=1)
    return down.float(), up.float()
