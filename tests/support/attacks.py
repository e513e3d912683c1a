"""Attacks by a server on one client's update; it knows the emulator, the round's adapter and every public seed.

Each attack has the attacker's own copy of the emulator with the adapter in it, at the round's adapter.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scaleot_core.adapters.adapter import AttachedAdapter
from scaleot_core.models.layout import layout_for
from scaleot_core.privacy.losses import example_losses
from scaleot_core.privacy.noise import NOISES
from scaleot_core.privacy.per_example import ExampleWay, gradients_of
from scaleot_core.privacy.release import LocalTask
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.privacy.zeroth_order import ZerothOrder, example_differences
from scaleot_core.shapes import TensorDict
from scaleot_core.training.data import EncodedExample
from tests.support.private_tasks import LOOP, flat, private_task

Scores = NDArray[np.float64]
"""One for each candidate record; the higher, the likelier it was trained on."""

_SAME_SPAN = 1e-2
"""Relative distance from a span below which a vector counts as inside; one of another text lies at some tenths."""
_NO_DIRECTION = 1e-6
"""Singular values below this share of the first are float32's rounding."""


class ForgottenNoise(SecretSource):
    """A fault to be caught: the real source, but for normal numbers, which are all zero."""

    __slots__ = ()

    def normal(self, count: int) -> NDArray[np.float64]:
        return np.zeros(count)


@contextmanager
def forgotten_noise() -> Iterator[SecretSource]:
    """Lends the source of a client whose noise is zero: normal numbers, and what is drawn by any law of scalars."""
    with pytest.MonkeyPatch.context() as patch:
        for law in NOISES.values():
            patch.setattr(law, "sample", lambda law, source, count: np.zeros(count))
        yield ForgottenNoise()


def change_of(base: TensorDict, update: TensorDict) -> TensorDict:
    """Returns how an update moved the adapter, float64."""
    return {name: update[name].double() - base[name].double() for name in base}


def loss_drop_scores(
    attached: AttachedAdapter, base: TensorDict, update: TensorDict, candidates: Sequence[EncodedExample]
) -> Scores:
    """Membership inference by the loss (Yeom et al. 2018), less the loss before (Watson et al. 2022): a hard record
    has a high loss whether it was there or not, one that was trained on has a lower loss than before. The candidates
    must be of one shape.
    """
    return _losses(attached, base, candidates) - _losses(attached, update, candidates)


def gradients_at(attached: AttachedAdapter, base: TensorDict, candidates: Sequence[EncodedExample]) -> Tensor:
    """Returns the gradient of each candidate's loss at the round's adapter, (candidates, adapter), float64."""
    attached.load(base)
    task = private_task(attached, list(candidates), LOOP)
    alone = (batch for candidate in candidates for batch in task.physical_batches([candidate]))
    return torch.stack([flat(gradients_of(attached, batch, LOOP)) for batch in alone])


def gradient_scores(gradients: Tensor, base: TensorDict, update: TensorDict) -> Scores:
    """Membership inference by the gradient (Li, Li and Ribeiro 2023): in many dimensions the gradients of different
    records are nearly orthogonal, and an update lies along those that are part of it. The cosine of the two.
    """
    descent = -flat(change_of(base, update))
    scores: Scores = torch.cosine_similarity(gradients, descent.unsqueeze(0), dim=1).numpy()
    return scores


def differences_at(
    attached: AttachedAdapter, base: TensorDict, settings: ZerothOrder, candidates: Sequence[EncodedExample]
) -> NDArray[np.float64]:
    """Returns how each candidate's loss changes along the directions of the round's first step, in their order.

    They must be of one shape.
    """
    attached.load(base)
    return example_differences(settings, _together(attached, candidates), candidates, 0)


def scalar_scores(differences: NDArray[np.float64], scalars: TensorDict) -> Scores:
    """``gradient_scores`` on what ``dpzero`` sends in a step: the cosine of that and each candidate's differences."""
    sent = scalars["scalars"][0].double().numpy()
    scores: Scores = differences @ sent / (np.linalg.norm(differences, axis=1) * np.linalg.norm(sent))
    return scores


def area_under_curve(members: Scores, others: Scores) -> float:
    """Returns the probability that a member scores above a record that is none: 0.5 is chance."""
    return float(np.mean(members[:, None] > others[None, :]) + np.mean(members[:, None] == others[None, :]) / 2)


def recover_text(
    attached: AttachedAdapter,
    base: TensorDict,
    update: TensorDict,
    linear: str,
    *,
    vocabulary_size: int,
    num_inputs: int | None = None,
) -> tuple[int, ...]:
    """Text reconstruction by the span of a linear map's gradient, greedily: the decoder attack of DAGER.

    The gradient of a linear map is a sum over tokens of an outer product with that token's input, so the rows of its
    change lie in the span of the inputs; with LoRA, the rows of B's change in that of the inputs after A. A causal
    model's input at a place hangs on the text up to there alone, all public but the text. So the text is found token
    by token: of all tokens that may follow, the one whose input lies in the span and is new. It ends where none does.

    Petrov et al. (2024), "DAGER: Exact Gradient Inversion for Large Language Models", which also takes LoRA; UTR
    (Chen et al. 2026, arXiv 2601.17533) goes further where LoRA's rank is below the number of tokens. It differs from
    DAGER in needing one adapted layer, at any depth, instead of the first two; one record an update is enough here.

    Args:
        linear: an adapted linear map by its layer's index and path, ``1.self_attn.v_proj``.
        num_inputs: how many tokens the record has, if the attacker is told; then as many are returned.
    """
    attached.load(base)
    change = change_of(base, update)
    rows = change[f"{linear}.lora_B"] if f"{linear}.lora_B" in change else change[f"{linear}.weight"]
    _, values, directions = torch.linalg.svd(rows, full_matrices=False)
    span = directions[: num_inputs or int((values > _NO_DIRECTION * values[0]).sum())]
    found: tuple[int, ...] = ()
    used = span[:0]
    while len(found) < len(span):
        prefixes = torch.tensor([(*found, token) for token in range(vocabulary_size)])
        inputs = _inputs_of(attached, linear, prefixes)
        distances = _distances(inputs, span)
        distances[_distances(inputs, used) < _SAME_SPAN] = torch.inf  # the first token again gives its input again
        if num_inputs is None and float(distances.min()) > _SAME_SPAN:
            break
        found = (*found, int(distances.argmin()))
        used = torch.linalg.qr(torch.cat([used, inputs[found[-1]].unsqueeze(0)]).T).Q.T
    return found


def _losses(attached: AttachedAdapter, state: TensorDict, candidates: Sequence[EncodedExample]) -> Scores:
    attached.load(state)
    (batch,) = _together(attached, candidates).physical_batches(candidates)
    with torch.inference_mode():
        return example_losses(attached.model, batch).double().numpy()


def _together(attached: AttachedAdapter, candidates: Sequence[EncodedExample]) -> LocalTask:
    """Returns a task whose candidates make one batch, in order: they must be of one shape (``physical_batches``)."""
    task = LocalTask(attached, candidates, 0, ExampleWay(len(candidates), uses_hooks=False, reason="one pass"))
    (_,) = task.physical_batches(candidates)
    return task


def _distances(vectors: Tensor, span: Tensor) -> Tensor:
    """Returns the distance of each row from a span of orthonormal rows, over its length."""
    outside = vectors - vectors @ span.T @ span
    return outside.norm(dim=1) / vectors.norm(dim=1)


def _inputs_of(attached: AttachedAdapter, linear: str, prefixes: Tensor) -> Tensor:
    """Returns what enters a linear map, or its B under LoRA, at the last token of each prefix; float64."""
    index, _, path = linear.partition(".")
    module = layout_for(attached.model.config).layer(attached.model, int(index)).get_submodule(path)
    with _recording(module) as inputs, torch.inference_mode():
        attached.model(input_ids=prefixes, logits_to_keep=1, use_cache=False)
    last = inputs[0][:, -1].double()
    down = attached.whole_state().get(f"{linear}.lora_A")
    return last if down is None else last @ down.double().T


@contextmanager
def _recording(module: nn.Module) -> Iterator[list[Tensor]]:
    inputs: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].detach()))
    try:
        yield inputs
    finally:
        handle.remove()
