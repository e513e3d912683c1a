"""Offsite-tuning with knowledge distillation: layers dropped at a uniform stride, then the kept ones trained.

Source: Xiao, Lin, Han (2023, arXiv 2302.04870). Its steps:

1. drop layers at a uniform stride (the builder ``uniform``);
2. on public text train what was kept of the middle, by
   ``L = L_LM + w * mean(((h_T - h_S) / rms(h_T))^2)`` with w = 30, where h_T and h_S are the hidden states that leave
   the middle of the full model and of the emulator for the same input, and rms runs over all of h_T.

With the adapter at the ends the input of the middle is what the first adapter layers make of the text: the same in
both models, because these layers are exact. So both simply read the same tokens.

[open] With the adapter elsewhere the depth falls into several blocks without an adapter. The hidden states are
compared where each block ends, and the mean over the blocks takes the place of the one: what the next adapter layer,
or the head, reads is then what it reads in the full model. A later block's input is the emulator's own.

[open] AdamW without weight decay; the learning rate falls to zero along a cosine. The authors' runs are far longer,
and warm up first.

Differs from the paper: dropout is off. As there, kept layers are float32 while they learn, and are rounded in the end
to the model's type; the emulator of a bfloat16 model computes in bfloat16 meanwhile, any other in float32.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice

import torch
from torch import Tensor, nn

from scaleot_core.compression.activations import layer_outputs
from scaleot_core.compression.builders.request import Distillation, EmulatorRequest, PublicKnowledge
from scaleot_core.compression.builders.uniform import plan_uniform
from scaleot_core.compression.emulator import Emulator, build_emulator
from scaleot_core.compression.plan import LayerPlan, LayerRole
from scaleot_core.compression.public_text import endless_batches, next_token_loss, relative_distance
from scaleot_core.errors import ModelError
from scaleot_core.models.attention import attention_for_training
from scaleot_core.models.loading import LanguageModel
from scaleot_core.models.logits import no_logits
from scaleot_core.models.recomputation import recomputed_activations
from scaleot_core.progress import Reporter
from scaleot_core.seeds import generator_for
from scaleot_core.shapes import HiddenStates, TokenBlocks, TokenIds


def build(full: LanguageModel, request: EmulatorRequest, public: PublicKnowledge, *, reporter: Reporter) -> Emulator:
    """Builds the emulator of ``uniform`` and trains the layers it kept on all of the public text."""
    plan = plan_uniform(full.layout.num_layers, request.adapter, request.replaced_layer_share)
    emulator = build_emulator(full, plan, {}, harmonizer_rank=1)
    if plan.indices(LayerRole.KEPT):
        distil_kept_layers(
            full,
            emulator,
            public.blocks(),
            request.distillation,
            batch_size=request.batch_size,
            seed=request.seed,
            reporter=reporter,
        )
    return emulator


def distil_kept_layers(
    full: LanguageModel,
    emulator: Emulator,
    public_blocks: TokenBlocks,
    settings: Distillation,
    *,
    batch_size: int,
    seed: int,
    reporter: Reporter,
) -> None:
    """Trains the kept layers of ``emulator``, of which there is at least one, in place.

    Batches of ``public_blocks`` (blocks, tokens) are drawn without replacement, epoch after epoch; gradients are
    clipped to norm 1. Everything but the kept layers stays as it is to the bit, and so does the full model.

    Raises:
        ModelError: the loss is not finite.
    """
    kept = _kept_parameters(emulator)
    ends = block_ends(emulator.plan)
    batches = islice(endless_batches(public_blocks, batch_size, generator_for(seed, "distillation")), settings.steps)
    with (
        _trainable(emulator, kept),
        layer_outputs(full.model, full.layout, ends) as full_states,
        layer_outputs(emulator.model, emulator.layout, ends) as emulator_states,
        reporter.stage("distillation", steps=settings.steps) as stage,
    ):
        optimizer = torch.optim.AdamW(kept, settings.learning_rate, weight_decay=0.0, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
        for number, batch in enumerate(batches):
            optimizer.zero_grad(set_to_none=True)
            recomputed = recomputed_activations(emulator.model, emulator.layout)
            with recomputed if settings.gradient_checkpointing else nullcontext():
                language_loss = _read_by_both(full, emulator, batch)
                states = [(full_states[index], emulator_states[index]) for index in ends]
                loss = distillation_loss(language_loss, states, settings.hidden_state_weight)
                with attention_for_training(emulator.model, batch):  # the kernel of the way forward, where recomputed
                    loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(kept, 1.0)
            optimizer.step()
            schedule.step()
            reached = float(loss.detach())
            if not math.isfinite(reached):
                raise ModelError(
                    f"the distillation loss is {reached} after {number} of {settings.steps} steps: take a smaller "
                    f"emulator.distillation_learning_rate (it is {settings.learning_rate:g})"
                )
            stage.advance(loss=reached)


def distillation_loss(
    language_loss: Tensor, states: Sequence[tuple[HiddenStates, HiddenStates]], hidden_state_weight: float
) -> Tensor:
    """Returns ``L_LM + w * mean(((h_T - h_S) / rms(h_T))^2)``, the second a mean over the blocks.

    ``states`` holds, for every block without an adapter, what leaves it in the full model (h_T) and in the emulator
    (h_S). Computed in float32; no gradient flows to h_T.
    """
    distances = [relative_distance(full_states, emulator_states) for full_states, emulator_states in states]
    return language_loss + hidden_state_weight * torch.stack(distances).mean()


def block_ends(plan: LayerPlan) -> tuple[int, ...]:
    """Returns the original index of the last layer of every run of layers without an adapter."""
    adapter = {*plan.adapter_layers, len(plan.layers)}
    return tuple(index for index in range(len(plan.layers)) if index not in adapter and index + 1 in adapter)


def _kept_parameters(emulator: Emulator) -> list[nn.Parameter]:
    layers = (emulator.layout.layer(emulator.model, index) for index in emulator.plan.indices(LayerRole.KEPT))
    return [parameter for layer in layers for parameter in layer.parameters()]


def _read_by_both(full: LanguageModel, emulator: Emulator, batch: TokenIds) -> Tensor:
    """Returns the emulator's language loss; the hooks on both models take their hidden states on the way."""
    token_ids = batch.to(full.model.device)
    with torch.no_grad():
        full.model(input_ids=token_ids, use_cache=False, logits_to_keep=no_logits())
    in_bfloat16 = full.model.dtype is torch.bfloat16
    with torch.autocast(token_ids.device.type, torch.bfloat16, enabled=in_bfloat16):
        return next_token_loss(emulator.model, token_ids)


@contextmanager
def _trainable(emulator: Emulator, kept: Sequence[nn.Parameter]) -> Iterator[None]:
    """Makes ``kept`` float32 parameters that learn; leaving the context restores types, and freezes them.

    All of a float16 emulator is float32 meanwhile, because gradients of small activations vanish in float16.
    """
    dtype = emulator.model.dtype
    widened = list(emulator.model.parameters()) if dtype is torch.float16 else kept
    for parameter in widened:
        parameter.data = parameter.data.float()
    for parameter in kept:
        parameter.requires_grad_(True)
    yield
    for parameter in kept:
        parameter.requires_grad_(False)
        parameter.grad = None
    for parameter in widened:
        parameter.data = parameter.data.to(dtype)
