"""Which way to the examples' gradients is right on this model and machine: tried on public random tokens.

No private record is looked at, so that the choice tells nothing of one.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from scaleot_core.adapters.adapter import AttachedAdapter
from scaleot_core.privacy.losses import example_losses, num_positions
from scaleot_core.privacy.per_example import ExampleWay, gradients_of, owners_of
from scaleot_core.privacy.physical_batches import PhysicalBatch, physical_batches
from scaleot_core.seeds import generator_for
from scaleot_core.shapes import TensorDict
from scaleot_core.training.data import EncodedExample

_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.1}
"""Of the relative distance between two ways to one gradient; a gradient of other examples is off by about 1."""
_REFUSALS = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError)
"""What Opacus raises at modules it does not understand, by the way they differ from what it expects."""
_SHIFT = 0.02
"""How far the adapter is moved for the trial: LoRA's A has no gradient where B is zero."""
_UNEQUAL = "kernels here compute an example differently with its company"
_PROBE_TOKENS = range(17, 25)
_PROBE_TARGETS = range(1, 9)
"""Lengths of one rung of the ladder."""


def choose_gradient_way(
    attached: AttachedAdapter, *, rows: int, pad_token_id: int, recomputes_activations: bool = False
) -> ExampleWay:
    """Returns the hooks with batches of ``rows`` rows if they are right here, else the loop, each with its reason.

    Hooks are taken where every trained parameter belongs to a plain ``nn.Linear`` and where, on random tokens and a
    shifted adapter, each example's gradient equals the loop's and an example that changes its row and its company keeps
    every bit. The adapter is put back exactly.
    """
    reason = _why_no_hooks(attached, recomputes_activations) or _why_wrong(attached, rows, pad_token_id)
    if reason is None:
        return ExampleWay(rows, uses_hooks=True, reason=f"Opacus' hooks, {rows} rows: equal to the loop on a trial")
    return ExampleWay(
        1,
        uses_hooks=False,
        reason=f"one example at a time: {reason}",
        recomputes_activations=recomputes_activations,
    )


def choose_forward_way(attached: AttachedAdapter, *, rows: int, pad_token_id: int) -> ExampleWay:
    """Returns forward passes of ``rows`` rows if an example's loss keeps every bit in all company, else of one.

    Tried on random tokens and a shifted adapter, which is put back exactly.
    """
    probes = _probes(attached.model.config.vocab_size, 2 * rows - 1)
    with _shifted(attached), torch.inference_mode():
        together = example_losses(attached.model, _probe_batch(attached, probes[:rows], rows, pad_token_id))
        moved = example_losses(attached.model, _probe_batch(attached, probes[rows:] + probes[:1], rows, pad_token_id))
    if torch.equal(together[0], moved[-1]):
        return ExampleWay(rows, uses_hooks=False, reason=f"forward passes of {rows} rows, each as if alone on a trial")
    return ExampleWay(1, uses_hooks=False, reason=f"one example at a time: {_UNEQUAL}")


def _why_no_hooks(attached: AttachedAdapter, recomputes_activations: bool) -> str | None:
    if recomputes_activations:
        return "activations are recomputed going backward, which hooks would count twice"
    for path, module in owners_of(attached):
        if type(module) is not nn.Linear:
            return f"hooks see plain linear maps, and {path} is a {type(module).__name__}"
    trained = {id(parameter) for parameter in attached.trainable().values()}
    for name, parameter in attached.model.named_parameters():
        if parameter.requires_grad and id(parameter) not in trained:
            return f"{name} wants a gradient and is no part of the adapter"
    return None


def _why_wrong(attached: AttachedAdapter, rows: int, pad_token_id: int) -> str | None:
    loop = ExampleWay(1, uses_hooks=False, reason="")
    hooks = ExampleWay(rows, uses_hooks=True, reason="")
    probes = _probes(attached.model.config.vocab_size, 2 * rows - 1)
    with _shifted(attached):
        try:
            together = gradients_of(attached, _probe_batch(attached, probes[:rows], rows, pad_token_id), hooks)
            moved = gradients_of(
                attached, _probe_batch(attached, probes[rows:] + probes[:1], rows, pad_token_id), hooks
            )
        except _REFUSALS as error:
            return f"Opacus' hooks fail with {type(error).__name__}: {error}"
        alone = [
            gradients_of(attached, _probe_batch(attached, [probe], 1, pad_token_id), loop) for probe in probes[:rows]
        ]
    tolerance = _TOLERANCES.get(attached.model.dtype, min(_TOLERANCES.values()))
    for row, expected in enumerate(alone):
        if not _distance(together, row, expected) <= tolerance:
            return "the hooks' gradients are not the loop's"
    if not all(torch.equal(tensor[0], moved[name][-1]) for name, tensor in together.items()):
        return _UNEQUAL
    return None


def _probes(vocabulary_size: int, count: int) -> list[EncodedExample]:
    """Returns public examples of one shape and of different lengths."""
    generator = generator_for(0, "probes of the examples' gradients")
    probes = []
    for index in range(count):
        length = _PROBE_TOKENS[index % len(_PROBE_TOKENS)]
        token_ids = torch.randint(vocabulary_size, (length,), generator=generator).tolist()
        probes.append(EncodedExample(tuple(token_ids), length - _PROBE_TARGETS[index % len(_PROBE_TARGETS)]))
    return probes


@contextmanager
def _shifted(attached: AttachedAdapter) -> Iterator[None]:
    state = attached.state()
    generator = generator_for(0, "shift of the adapter")
    attached.load(
        {name: tensor + _SHIFT * torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}
    )
    try:
        yield
    finally:
        attached.load(state)


def _distance(gradients: TensorDict, row: int, expected: TensorDict) -> float:
    """Returns how far one row's gradient is from another way's, relative to that."""
    difference = sum(
        float((gradients[name][row] - tensor[0]).double().square().sum()) for name, tensor in expected.items()
    )
    size = sum(float(tensor.double().square().sum()) for tensor in expected.values())
    return math.sqrt(difference / size)


def _probe_batch(
    attached: AttachedAdapter, probes: list[EncodedExample], rows: int, pad_token_id: int
) -> PhysicalBatch:
    (only,) = physical_batches(
        probes,
        rows=rows,
        pad_token_id=pad_token_id,
        max_positions=num_positions(attached.model),
        device=attached.device,
    )
    return only
