"""Which way to the examples' gradients is right on this model and machine: tried on public random tokens.

No private record is looked at, so that the choice tells nothing of one.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from scaleot_core.adapters.adapter import AttachedAdapter
from scaleot_core.models.positions import num_positions, readable_tokens
from scaleot_core.privacy.losses import example_losses
from scaleot_core.privacy.per_example import ExampleWay, gradients_of, owners_of
from scaleot_core.privacy.physical_batches import PhysicalBatch, physical_batches, rows_in
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
_PROBE_LENGTHS = (24, 128)
"""The longest probe of a short and of a long batch; the others are up to seven tokens shorter, of the same rung."""


def choose_gradient_way(
    attached: AttachedAdapter, *, rows: int, pad_token_id: int, recomputes_activations: bool = False
) -> ExampleWay:
    """Returns the hooks with batches of ``rows`` rows if they are right here, else the loop, each with its reason.

    Hooks are taken where every trained parameter belongs to a plain ``nn.Linear`` and where, on random tokens and a
    shifted adapter, each example's gradient equals the loop's, and an example that changes its row and its company,
    in a short batch or a long one, keeps every bit. The adapter is put back exactly.
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

    Tried on random tokens, a short batch and a long one, and a shifted adapter, which is put back exactly.
    """
    with _shifted(attached), torch.inference_mode():
        for trial in _trials(attached, rows, pad_token_id):
            first, second = (example_losses(attached.model, batch) for batch in (trial.first, trial.second))
            if not torch.equal(first[0], second[-1]):
                return ExampleWay(1, uses_hooks=False, reason=f"one example at a time: {_UNEQUAL}")
    return ExampleWay(rows, uses_hooks=False, reason=f"forward passes of {rows} rows, each as if alone on a trial")


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
    hooks = ExampleWay(rows, uses_hooks=True, reason="")
    tolerance = _TOLERANCES.get(attached.model.dtype, min(_TOLERANCES.values()))
    with _shifted(attached):
        for number, trial in enumerate(_trials(attached, rows, pad_token_id)):
            try:
                first, second = (gradients_of(attached, batch, hooks) for batch in (trial.first, trial.second))
            except _REFUSALS as error:
                return f"Opacus' hooks fail with {type(error).__name__}: {error}"
            if number == 0 and not _is_the_loops(attached, trial, first, tolerance, pad_token_id):
                return "the hooks' gradients are not the loop's"
            if not all(torch.equal(tensor[0], second[name][-1]) for name, tensor in first.items()):
                return _UNEQUAL
    return None


def _is_the_loops(
    attached: AttachedAdapter, trial: "_Trial", gradients: TensorDict, tolerance: float, pad_token_id: int
) -> bool:
    loop = ExampleWay(1, uses_hooks=False, reason="")
    for row, example in enumerate(trial.examples):
        (alone,) = _batches(attached, [example], 1, pad_token_id)
        if not _distance(gradients, row, gradients_of(attached, alone, loop)) <= tolerance:
            return False
    return True


@dataclass(frozen=True)
class _Trial:
    """Two full batches of one shape: the first row of the one is the last row of the other, in all other company."""

    examples: list[EncodedExample]
    """Of ``first``."""
    first: PhysicalBatch
    second: PhysicalBatch


def _trials(attached: AttachedAdapter, rows: int, pad_token_id: int) -> Iterator[_Trial]:
    """Yields a trial of short examples, public random tokens, and one of long ones, whose batches have fewer rows."""
    model = attached.model
    generator = generator_for(0, "probes of the examples' gradients")
    for wanted in _PROBE_LENGTHS:
        longest = readable_tokens(model, wanted)
        shorter = 8 if longest == wanted else 1
        in_batch = rows_in(longest, rows, attached.device)
        probes = []
        for index in range(2 * in_batch - 1):
            length = longest - index % shorter
            token_ids = torch.randint(model.config.vocab_size, (length,), generator=generator).tolist()
            probes.append(EncodedExample(tuple(token_ids), length - 1 - index % 8))
        examples = probes[:in_batch]
        (first,) = _batches(attached, examples, rows, pad_token_id)
        (second,) = _batches(attached, probes[in_batch:] + probes[:1], rows, pad_token_id)
        yield _Trial(examples, first, second)


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


def _batches(
    attached: AttachedAdapter, examples: list[EncodedExample], rows: int, pad_token_id: int
) -> Iterator[PhysicalBatch]:
    return physical_batches(
        examples,
        rows=rows,
        pad_token_id=pad_token_id,
        max_positions=num_positions(attached.model),
        device=attached.device,
    )
