"""Plugging an adapter into the full model, and writing it where others can use it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from transformers import PreTrainedModel

from scaleot_core.adapters.adapter import attach_adapter, lora_config
from scaleot_core.adapters.spec import AdapterKind, AdapterSpec
from scaleot_core.models.layout import DecoderLayout
from scaleot_core.shapes import TensorDict


@contextmanager
def plugged_in(
    model: PreTrainedModel, layout: DecoderLayout, spec: AdapterSpec, state: TensorDict
) -> Iterator[PreTrainedModel]:
    """Lends the full model with the tuned adapter in it (the paper's [A', E]); afterwards it is as it was.

    Tensors find their place by original layer index, whatever their order.

    Raises:
        ModelError: the state does not fit the specification or the model.
    """
    attached = attach_adapter(model, layout, spec)
    try:
        attached.load(state)
        yield attached.model
    finally:
        attached.detach()


def save_adapter(
    model: PreTrainedModel, layout: DecoderLayout, spec: AdapterSpec, state: TensorDict, directory: Path
) -> None:
    """Writes the adapter that ``state`` is of ``model``: LoRA in peft's own format, others as JSON and safetensors.

    ``PeftModel.from_pretrained(full_model, directory)`` reads the first, FFA-LoRA's frozen A included.
    """
    attached = attach_adapter(model, layout, spec)
    try:
        attached.load(state)
        tensors = attached.whole_state()
    finally:
        attached.detach()
    directory.mkdir(parents=True, exist_ok=True)
    if spec.kind is AdapterKind.LORA:
        lora_config(layout, spec).save_pretrained(str(directory))
        named = {f"base_model.model.{layout.family.layers}.{name}.weight": tensors[name] for name in tensors}
        save_file(named, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    else:
        (directory / "adapter.json").write_text(json.dumps(spec.to_json(), sort_keys=True), encoding="utf-8")
        save_file(tensors, directory / "adapter.safetensors")
