"""What every decoder layer reads and writes while the full model reads public text."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from scaleot_core.models.layout import DecoderLayout
from scaleot_core.models.loading import LanguageModel
from scaleot_core.models.logits import no_logits
from scaleot_core.progress import Reporter
from scaleot_core.shapes import HiddenStates, TokenBlocks

Observer = Callable[[int, HiddenStates, HiddenStates], None]
"""Takes a layer's original index and its input and output hidden states for one batch."""


def observe_layers(
    full: LanguageModel, blocks: TokenBlocks, observe: Observer, *, batch_size: int, reporter: Reporter, stage: str
) -> None:
    """Runs the model over ``blocks`` once, and hands ``observe`` what each layer read and wrote in each batch.

    The layers of a batch come in their order, both states on the layer's device. Nothing is kept: the memory is that
    of one forward pass, whatever the amount of text. The model comes back as it was, without hooks, also after an
    error.
    """
    hooks = [
        full.layout.layer(full.model, index).register_forward_hook(_hook(index, observe), with_kwargs=True)
        for index in range(full.layout.num_layers)
    ]
    try:
        read_blocks(full, blocks, batch_size=batch_size, reporter=reporter, stage=stage)
    finally:
        for hook in hooks:
            hook.remove()


def read_blocks(full: LanguageModel, blocks: TokenBlocks, *, batch_size: int, reporter: Reporter, stage: str) -> None:
    """Runs the model over ``blocks`` once, without gradients, for whatever hooks look on."""
    batches = torch.split(blocks, batch_size)
    with torch.inference_mode(), reporter.stage(stage, steps=len(batches)) as progress:
        for batch in batches:
            full.model(input_ids=batch.to(full.model.device), use_cache=False, logits_to_keep=no_logits())
            progress.advance()


@contextmanager
def layer_outputs(model: nn.Module, layout: DecoderLayout, indices: Sequence[int]) -> Iterator[dict[int, HiddenStates]]:
    """Yields what stood at these original indices gave in the last forward pass, be it a layer or a stand-in."""
    states: dict[int, HiddenStates] = {}

    def keep(index: int) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: HiddenStates | tuple[HiddenStates, object]) -> None:
            states[index] = output[0] if isinstance(output, tuple) else output

        return hook

    hooks = [layout.layer(model, index).register_forward_hook(keep(index)) for index in indices]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def _hook(index: int, observe: Observer) -> Callable[..., None]:
    def hand_over(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        y = output[0] if isinstance(output, tuple) else output
        observe(index, x.to(y.device), y)  # type: ignore[attr-defined, union-attr, arg-type]

    return hand_over
