"""Canaries for an audit: made-up records, public and alike in everything but what they say, in a tiny real model.

Privacy does not depend on the model, so the audit takes one small enough to ask a thousand canaries about. What a
canary adds to a release is its own clipped vector, which anybody can compute; with a bound below every canary's norm
each of them adds as much as a record may.
"""

from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM

from scaleot_core.adapters.adapter import AttachedAdapter, attach_adapter
from scaleot_core.adapters.spec import AdapterKind, AdapterSpec
from scaleot_core.errors import InputError
from scaleot_core.models.layout import layout_for
from scaleot_core.privacy.clipping import clip_vectors
from scaleot_core.privacy.discrete_gaussian import CELLS_PER_UNIT
from scaleot_core.privacy.dp_sgd import DPSGD
from scaleot_core.privacy.dpzero import DPZero
from scaleot_core.privacy.gradient_way import choose_forward_way, choose_gradient_way
from scaleot_core.privacy.lmo_dp import LMODP
from scaleot_core.privacy.mechanism import Mechanism
from scaleot_core.privacy.per_example import gradients_of
from scaleot_core.privacy.release import LocalTask
from scaleot_core.privacy.zeroth_order import example_differences
from scaleot_core.seeds import generator_for
from scaleot_core.shapes import TensorDict
from scaleot_core.training.data import EncodedExample

CANARY_NORM: Final = 1.0
"""The clipping norm of an audit: what a canary adds has this norm, whatever the mechanism."""
_VOCABULARY_SIZE: Final = 128
_MODEL: Final = {
    "vocab_size": _VOCABULARY_SIZE,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
_TOKENS: Final = 8
_TARGET_START: Final = 4
_GRADIENT_ROWS, _FORWARD_ROWS = 50, 250
_PAD: Final = 0

Vectors: TypeAlias = NDArray[np.float64]
AuditedMechanism: TypeAlias = DPSGD | DPZero | LMODP


def check_can_be_audited(mechanism: Mechanism) -> AuditedMechanism:
    """Returns the mechanism if one run can audit it.

    Raises:
        InputError: its unit is a whole data set.
    """
    if not isinstance(mechanism, AuditedMechanism):
        raise InputError(
            "an audit in one run: the unit of update-gaussian is a whole data set, of which a run has one; its noise "
            "and its account are those of dp-sgd, which can be audited"
        )
    return mechanism


def canary_task(mechanism: AuditedMechanism, count: int) -> LocalTask:
    """Returns ``count`` public canaries in a tiny model, always the same, as the examples of a task."""
    attached = _tiny_adapter()
    tokens = torch.randint(1, _VOCABULARY_SIZE, (count, _TOKENS), generator=generator_for(0, "canaries"))
    canaries = [EncodedExample(tuple(row), _TARGET_START) for row in tokens.tolist()]
    if isinstance(mechanism, DPSGD):
        way = choose_gradient_way(attached, rows=_GRADIENT_ROWS, pad_token_id=_PAD)
    else:
        way = choose_forward_way(attached, rows=_FORWARD_ROWS, pad_token_id=_PAD)
    return LocalTask(attached, canaries, _PAD, way)


def released_vector(mechanism: AuditedMechanism, step: TensorDict) -> Vectors:
    """Returns what a step released as one vector, in the units of the clipping norm."""
    if isinstance(mechanism, DPSGD):
        return torch.cat([step[name].flatten() for name in sorted(step)]).double().numpy()
    return step["scalars"].double().numpy() * (max_grad_norm(mechanism) / CELLS_PER_UNIT)


def canary_vectors(mechanism: AuditedMechanism, task: LocalTask) -> Callable[[int], Vectors]:
    """Returns what tells each step's vectors of all canaries, (canaries, coordinates), as the mechanism clips them.

    ``step`` leaves the adapter where it is, so that a gradient is the same in all steps; directions change.
    """
    if isinstance(mechanism, DPSGD):
        gradients = clip_vectors(_flat_gradients(task), mechanism.max_grad_norm)
        return lambda _: gradients
    settings, norm = mechanism.zeroth_order, mechanism.event().law().norm

    def differences(index: int) -> Vectors:
        vectors = example_differences(settings, task, task.examples, index) / settings.num_directions**0.5
        return clip_vectors(vectors, settings.max_grad_norm, norm)

    return differences


def max_grad_norm(mechanism: AuditedMechanism) -> float:
    """Returns the bound of what one example adds."""
    return mechanism.max_grad_norm if isinstance(mechanism, DPSGD) else mechanism.zeroth_order.max_grad_norm


def _flat_gradients(task: LocalTask) -> Vectors:
    """Returns the canaries' gradients, (canaries, parameters), by sorted name; all of one shape keep their order."""
    rows = []
    for batch in task.physical_batches(task.examples):
        gradients = gradients_of(task.attached, batch, task.way)
        rows.append(torch.cat([gradients[name].flatten(start_dim=1) for name in sorted(gradients)], dim=1))
    flat: Vectors = torch.cat(rows).double().numpy()
    return flat


def _tiny_adapter() -> AttachedAdapter:
    """Returns LoRA in a random model of one layer, moved off its start so that every gradient is there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **_MODEL), dtype=torch.float32)
    model.eval().requires_grad_(False)
    attached = attach_adapter(model, layout_for(model.config), AdapterSpec(AdapterKind.LORA, (0,), rank=8, seed=0))
    state, generator = attached.state(), generator_for(0, "canaries' adapter")
    attached.load({name: state[name] + 0.1 * torch.randn(state[name].shape, generator=generator) for name in state})
    return attached
