"""Literal, slow transcriptions of the private algorithms, one example and one line of the paper at a time."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from scaleot_core.adapters.adapter import AttachedAdapter
from scaleot_core.training.data import EncodedExample


def mean_target_loss(model: nn.Module, example: EncodedExample) -> Tensor:
    """The loss of one example, unpadded: the mean of -log p(token | tokens before) over its own targets."""
    logits = model(input_ids=torch.tensor([example.token_ids]), use_cache=False).logits[0].float()
    log_probabilities = logits.log_softmax(dim=-1)
    losses = [
        -log_probabilities[position - 1, example.token_ids[position]]
        for position in range(example.target_start, len(example.token_ids))
    ]
    return torch.stack(losses).mean()


def example_gradient(attached: AttachedAdapter, example: EncodedExample) -> Tensor:
    """One example's gradient with plain backward(), as one float64 vector by sorted name."""
    for parameter in attached.trainable().values():
        parameter.grad = None
    torch.autograd.backward(mean_target_loss(attached.model, example))
    gradients = [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for parameter in attached.trainable().values()
    ]
    for parameter in attached.trainable().values():
        parameter.grad = None
    return torch.cat([gradient.double().flatten() for gradient in gradients])


def dp_sgd_clipped_sum(attached: AttachedAdapter, batch: Sequence[EncodedExample], c: float) -> Tensor:
    """Abadi et al. (2016), algorithm 1, "compute gradient" and "clip gradient", summed: g / max(1, |g| / C)."""
    total = torch.zeros(sum(parameter.numel() for parameter in attached.trainable().values()), dtype=torch.float64)
    for example in batch:
        g = example_gradient(attached, example)
        total += g / max(1.0, float(g.norm()) / c)
    return total


def dpzero_step(
    f: Callable[[Tensor, EncodedExample], float],
    x: Tensor,
    examples: Sequence[EncodedExample],
    u: Tensor,
    *,
    lam: float,
    c: float,
    alpha: float,
    z: float,
) -> Tensor:
    """Zhang et al. (2023), algorithm 2, one step t: x, u and the result are vectors, z is the noise of the mean."""
    clipped = []
    for xi in examples:
        d = (f(x + lam * u, xi) - f(x - lam * u, xi)) / (2 * lam)
        clipped.append(d * min(1.0, c / abs(d)))
    return x - alpha * (sum(clipped) / len(examples) + z) * u
