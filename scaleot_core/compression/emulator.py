"""The emulator: the lossy stand-in of the full model that a data owner tunes an adapter in.

Every original layer index keeps its place in the emulator's list of layers: what is replaced or dropped leaves a
harmonizer or the identity there. So adapters are addressed alike in the emulator and in the full model, and a model's
own forward, with its per-layer attention kinds, runs unchanged.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from scaleot_core.compression.channels import narrow_layer, planned_channels, prune_channels, verbatim_count
from scaleot_core.compression.emulator_report import EmulatorReport
from scaleot_core.compression.harmonizer import DroppedLayer, Harmonizer
from scaleot_core.compression.plan import LayerPlan, LayerRole, PlannedLayer
from scaleot_core.compression.rank import Factorize, compress_layer, nearest
from scaleot_core.errors import ModelError
from scaleot_core.models.families import family_of
from scaleot_core.models.layout import DecoderLayout, layout_for
from scaleot_core.models.loading import LanguageModel, load_tokenizer, tokenizer_files
from scaleot_core.models.placement import gather
from scaleot_core.shapes import PartIndices, TensorDict

CONFIG_FILE, PLAN_FILE, WEIGHTS_FILE = "config.json", "plan.json", "emulator.safetensors"


@dataclass(frozen=True)
class Emulator:
    """A compressed model with its plan; frozen, in eval mode."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    layout: DecoderLayout
    plan: LayerPlan
    harmonizer_rank: int


def build_emulator(
    full: LanguageModel,
    plan: LayerPlan,
    harmonizers: TensorDict,
    *,
    harmonizer_rank: int,
    factorize: Factorize = nearest,
    kept_channels: Mapping[int, PartIndices] = MappingProxyType({}),
) -> Emulator:
    """Builds the emulator that ``plan`` describes; the full model is left as it is.

    ``harmonizers`` holds ``<index>.down.weight`` and ``<index>.up.weight`` for every replaced layer, as
    ``estimate_importance`` gives them. Adapter layers, embeddings, norms and head are exact copies; ``factorize``
    gives the low-rank maps of kept layers. ``kept_channels`` holds, by original index, the feed-forward channels of
    every layer that keeps a share of them; they are chosen before the rank is reduced. The emulator of a full model
    that is spread over several devices stands on the first of them.

    Source: ScaleOT (Yao et al., 2024), stage 2.

    Raises:
        ModelError: the plan is for another number of layers, or ``kept_channels`` does not fit it.
    """
    layout = full.layout
    if len(plan.layers) != layout.num_layers:
        raise ModelError(f"the plan is for {len(plan.layers)} layers, the model has {layout.num_layers}")
    model = _copy_without(full, plan)
    device, dtype = full.model.device, full.model.dtype
    _place_stand_ins(model, layout, plan, harmonizer_rank)
    for index in plan.indices(LayerRole.REPLACED):
        stand_in = layout.layer(model, index)
        stand_in.load_state_dict(
            {name: harmonizers[f"{index}.{name}"].to(device, dtype) for name in ("down.weight", "up.weight")},
            assign=True,
        )
    for planned in plan.layers:
        if planned.role is LayerRole.KEPT:
            layer = layout.layer(model, planned.index)
            _prune_as_planned(layer, layout, planned, kept_channels)
            compress_layer(layer, layout, planned, factorize)
    _share_weights(model, layout, plan)
    gather(model, device)
    model.eval().requires_grad_(False)
    return Emulator(model, full.tokenizer, layout, plan, harmonizer_rank)


def describe_emulator(emulator: Emulator, full: LanguageModel) -> EmulatorReport:
    """Weighs an emulator and compares it, tensor by tensor, with the full model it was built from."""
    original = dict(full.model.named_parameters())
    full_size = sum(tensor.numel() for tensor in original.values())
    parameters, size_bytes, verbatim = 0, 0, 0
    for name, tensor in _own_parameters(emulator):
        parameters += tensor.numel()
        size_bytes += tensor.numel() * tensor.element_size()
        if name in original:
            verbatim += verbatim_count(tensor, original[name].to(tensor.device))
    harmonizers = (emulator.layout.layer(emulator.model, i) for i in emulator.plan.indices(LayerRole.REPLACED))
    trained = sum(tensor.numel() for harmonizer in harmonizers for tensor in harmonizer.parameters())
    return EmulatorReport(parameters, size_bytes, parameters / full_size, verbatim / full_size, trained / full_size)


def write_emulator(emulator: Emulator, directory: Path) -> None:
    """Writes the five files of an emulator: configuration, plan, weights and the tokenizer's two."""
    config = emulator.model.config.to_dict()
    for origin in ("_name_or_path", "quantization_config", "auto_map", "transformers_version"):
        config.pop(origin, None)
    plan = {"layers": emulator.plan.to_json(), "harmonizer_rank": emulator.harmonizer_rank}
    texts = {
        CONFIG_FILE: json.dumps(config, sort_keys=True),
        PLAN_FILE: json.dumps(plan, sort_keys=True),
        **tokenizer_files(emulator.tokenizer),
    }
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8")
    own = {name for name, _ in _own_parameters(emulator)}
    left_out = {name for name, _ in emulator.model.named_parameters(remove_duplicate=False)} - own
    tensors = {k: v.contiguous() for k, v in emulator.model.state_dict().items() if k not in left_out}
    save_file(tensors, directory / WEIGHTS_FILE)


def read_emulator(files: Mapping[str, Path], *, device: torch.device) -> Emulator:
    """Reads what ``write_emulator`` wrote, from its five names to readable paths.

    Raises:
        ModelError: a file is missing or malformed, or the weights do not fit configuration and plan.
    """
    try:
        config_values = json.loads(files[CONFIG_FILE].read_bytes())
        plan_values = json.loads(files[PLAN_FILE].read_bytes())
        family_of(config_values["model_type"])
        config = CONFIG_MAPPING[config_values["model_type"]].from_dict(config_values)
        plan, rank = LayerPlan.from_json(plan_values["layers"]), int(plan_values["harmonizer_rank"])
        tensors = load_file(files[WEIGHTS_FILE], device=str(device))
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise ModelError(f"the emulator's files cannot be read: {error}") from error
    layout = layout_for(config)
    if len(plan.layers) != layout.num_layers:
        raise ModelError(f"the plan is for {len(plan.layers)} layers, the configuration for {layout.num_layers}")
    model = _assemble(config, layout, plan, rank, tensors)
    model.to(device).eval().requires_grad_(False)
    return Emulator(model, load_tokenizer(dict(files)), layout, plan, rank)


def _own_parameters(emulator: Emulator) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields every parameter once: not under a tied head's name, nor under that of a layer which shares weights."""
    sharing = tuple(f"{emulator.layout.layer_path(i)}." for i in emulator.plan.indices(LayerRole.SHARED))
    seen = set()
    for name, parameter in emulator.model.named_parameters(remove_duplicate=False):
        if not name.startswith(sharing) and id(parameter) not in seen:
            seen.add(id(parameter))
            yield name, parameter


def _copy_without(full: LanguageModel, plan: LayerPlan) -> PreTrainedModel:
    """Copies the model but for the layers that no longer stand in it, so that memory never holds them twice."""
    absent = (*plan.indices(LayerRole.REPLACED), *plan.indices(LayerRole.DROPPED))
    memo: dict[int, Any] = {id(full.layout.layer(full.model, index)): nn.Identity() for index in absent}
    return copy.deepcopy(full.model, memo)


def _place_stand_ins(model: PreTrainedModel, layout: DecoderLayout, plan: LayerPlan, rank: int) -> None:
    returns_tuple = layout.family.returns_tuple
    for index in plan.indices(LayerRole.REPLACED):
        harmonizer = Harmonizer(layout.hidden_size, rank, layer_index=index, returns_tuple=returns_tuple)
        layout.replace_layer(model, index, harmonizer)
    for index in plan.indices(LayerRole.DROPPED):
        layout.replace_layer(model, index, DroppedLayer(layer_index=index, returns_tuple=returns_tuple))


def _prune_as_planned(
    layer: nn.Module, layout: DecoderLayout, planned: PlannedLayer, kept_channels: Mapping[int, PartIndices]
) -> None:
    if planned.kept_channel_share == 1.0:
        return
    kept, count = kept_channels.get(planned.index), planned_channels(layer, layout, planned)
    if kept is None or len(kept) != count:
        got = "none" if kept is None else len(kept)
        raise ModelError(f"layer {planned.index}: the plan keeps {count} channels, {got} were chosen")
    prune_channels(layer, layout, kept)


def _shape_as_planned(layer: nn.Module, layout: DecoderLayout, planned: PlannedLayer) -> None:
    """Gives a kept layer its planned widths and ranks: shapes for a state dictionary to fill."""
    narrow_layer(layer, layout, planned)
    compress_layer(layer, layout, planned, factorize=None)


def _share_weights(model: PreTrainedModel, layout: DecoderLayout, plan: LayerPlan) -> None:
    """Lets every shared layer run with its kept layer's weights, in the modules of its own index.

    So it keeps its place in the cache and its own kind of attention.
    """
    for index, source in plan.shared_from.items():
        layer = layout.layer(model, index)
        _shape_as_planned(layer, layout, plan.layers[source])
        for path, module in layout.layer(model, source).named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                layer.get_submodule(path).register_parameter(name, parameter)


def _assemble(config: Any, layout: DecoderLayout, plan: LayerPlan, rank: int, tensors: TensorDict) -> PreTrainedModel:
    """Builds the model without memory for its weights, then gives it the tensors that were read."""
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config)
        _place_stand_ins(model, layout, plan, rank)
        for planned in plan.layers:
            if planned.role is LayerRole.KEPT:
                _shape_as_planned(layout.layer(model, planned.index), layout, planned)
    try:
        unexpected = model.load_state_dict(tensors, strict=False, assign=True).unexpected_keys
    except RuntimeError as error:
        raise ModelError(f"the emulator's weights do not fit: {error}") from error
    model.tie_weights()
    _share_weights(model, layout, plan)
    unfilled = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if unfilled or unexpected:
        raise ModelError(f"the emulator's weights do not fit: missing {unfilled[:3]}, unknown {unexpected[:3]}")
    return model
