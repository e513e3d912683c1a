"""Adapters: the few parameters that are trained, averaged and plugged in, addressed by original layer index.

Three kinds: LoRA on every linear map of the adapter layers (through peft), the adapter layers whole, or bottlenecks
in them. An adapter is attached to an emulator or to a full model alike, because both keep every layer in its place.
"""

from collections.abc import Callable

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from scaleot_core.adapters.bottleneck import BottleneckedLinear
from scaleot_core.adapters.spec import AdapterKind, AdapterSpec
from scaleot_core.errors import ModelError
from scaleot_core.models.layout import DecoderLayout, replace_submodule
from scaleot_core.seeds import generator_for
from scaleot_core.shapes import TensorDict

LORA_SCALING = 2.0
"""LoRA's alpha over its rank, the same for every rank."""
_PEFT_NAME = "scaleot"


class AttachedAdapter:
    """An adapter inside a model; ``detach`` leaves the model as it was before."""

    def __init__(
        self,
        model: PreTrainedModel,
        trainable: dict[str, nn.Parameter],
        restore: Callable[[], None],
        frozen: dict[str, nn.Parameter] | None = None,
    ) -> None:
        self.model = model
        self._trainable = dict(sorted(trainable.items()))
        self._frozen = frozen or {}
        self._restore = restore
        for parameter in self._trainable.values():
            parameter.requires_grad_(True)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return torch.device(self.model.device)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Returns the float32 parameters to train, by names such as ``6.self_attn.q_proj.lora_A``."""
        return self._trainable

    def state(self) -> TensorDict:
        """Returns float32 copies, on the CPU, of what is trained, sorted by name."""
        return {name: parameter.detach().float().cpu().clone() for name, parameter in self._trainable.items()}

    def whole_state(self) -> TensorDict:
        """Returns ``state`` and what is part of the adapter but not trained: FFA-LoRA's A."""
        frozen = {name: parameter.detach().float().cpu().clone() for name, parameter in self._frozen.items()}
        return {**self.state(), **frozen}

    def load(self, state: TensorDict) -> None:
        """Puts the values of ``state`` into the adapter.

        Raises:
            ModelError: a name is missing or unknown, or a shape differs.
        """
        expected = {name: tuple(parameter.shape) for name, parameter in self._trainable.items()}
        got = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if got != expected:
            wrong = sorted(set(got.items()) ^ set(expected.items()))[:3]
            raise ModelError(f"the adapter's state does not fit: differs first at {wrong}")
        with torch.no_grad():
            for name, parameter in self._trainable.items():
                parameter.copy_(state[name])

    def detach(self) -> None:
        """Takes the adapter out; the model computes again what it computed before, bit for bit."""
        self._restore()


def attach_adapter(model: PreTrainedModel, layout: DecoderLayout, spec: AdapterSpec) -> AttachedAdapter:
    """Puts a fresh adapter into ``model``, which then computes what it did before until the adapter is trained.

    Raises:
        ModelError: a layer index is out of range, or an emulator has no exact layer there.
    """
    for index in spec.layers:
        _check_exact(model, layout, index)
    match spec.kind:
        case AdapterKind.LORA:
            return _attach_lora(model, layout, spec)
        case AdapterKind.LAYERS:
            return _attach_layers(model, layout, spec)
        case AdapterKind.BOTTLENECK:
            return _attach_bottlenecks(model, layout, spec)


def lora_config(layout: DecoderLayout, spec: AdapterSpec) -> LoraConfig:
    """Returns peft's configuration of a LoRA adapter; its targets match whole paths, never a suffix."""
    linears = "|".join(name.replace(".", r"\.") for name in (*layout.attention_linears, *layout.mlp_linears))
    indices = "|".join(str(index) for index in spec.layers)
    layers = layout.family.layers.replace(".", r"\.")
    return LoraConfig(
        r=spec.rank,
        lora_alpha=round(LORA_SCALING * spec.rank),
        target_modules=rf"{layers}\.({indices})\.({linears})",
        fan_in_fan_out=layout.family.transposed,
        task_type="CAUSAL_LM",
    )


def _attach_lora(model: PreTrainedModel, layout: DecoderLayout, spec: AdapterSpec) -> AttachedAdapter:
    frozen = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    inject_adapter_in_model(lora_config(layout, spec), model, adapter_name=_PEFT_NAME)
    downs: dict[str, nn.Parameter] = {}
    ups: dict[str, nn.Parameter] = {}
    originals: dict[str, nn.Module] = {}
    for index in spec.layers:
        for linear in (*layout.attention_linears, *layout.mlp_linears):
            path = f"{layout.layer_path(index)}.{linear}"
            wrapped = model.get_submodule(path)
            originals[path] = wrapped.get_base_layer()
            down, up = wrapped.lora_A[_PEFT_NAME].float(), wrapped.lora_B[_PEFT_NAME].float()
            _start_lora(down.weight, up.weight, spec.seed, f"{index}.{linear}")
            down.weight.requires_grad_(False)
            downs[f"{index}.{linear}.lora_A"] = down.weight
            ups[f"{index}.{linear}.lora_B"] = up.weight

    def restore() -> None:
        for path, original in originals.items():
            replace_submodule(model, path, original)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(frozen[name])
        del model.peft_config

    if spec.freezes_down:
        return AttachedAdapter(model, ups, restore, frozen=downs)
    return AttachedAdapter(model, {**downs, **ups}, restore)


def _start_lora(down: Tensor, up: Tensor, seed: int, name: str) -> None:
    """Sets peft's own starting values, A uniform in +-1/sqrt(in) and B zero, from a stream of its own per name."""
    bound = down.shape[1] ** -0.5
    with torch.no_grad():
        down.copy_((torch.rand(down.shape, generator=generator_for(seed, "adapter", name)) * 2 - 1) * bound)
        up.zero_()


class _RoundedTo(nn.Module):
    """A parametrisation: the model sees a float32 parameter rounded to its own type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def forward(self, original: Tensor) -> Tensor:
        return original.to(self._dtype)

    def right_inverse(self, value: Tensor) -> tuple[Tensor]:
        return (value.float(),)  # a lone tensor may not change its type, one of a sequence may


def _attach_layers(model: PreTrainedModel, layout: DecoderLayout, spec: AdapterSpec) -> AttachedAdapter:
    trainable: dict[str, nn.Parameter] = {}
    originals: list[tuple[nn.Module, str, nn.Parameter]] = []
    for index in spec.layers:
        layer = layout.layer(model, index)
        for path, parameter in list(layer.named_parameters()):
            module_path, _, name = path.rpartition(".")
            module = layer.get_submodule(module_path)
            originals.append((module, name, parameter))
            module.register_parameter(name, nn.Parameter(parameter.detach().clone()))
            parametrize.register_parametrization(module, name, _RoundedTo(parameter.dtype), unsafe=True)
            trainable[f"{index}.{path}"] = module.get_parameter(f"parametrizations.{name}.original0")

    def restore() -> None:
        for module, name, original in originals:
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
            module.register_parameter(name, original)

    return AttachedAdapter(model, trainable, restore)


def _attach_bottlenecks(model: PreTrainedModel, layout: DecoderLayout, spec: AdapterSpec) -> AttachedAdapter:
    trainable: dict[str, nn.Parameter] = {}
    originals: dict[str, nn.Module] = {}
    for index in spec.layers:
        for linear in (layout.attention_linears[-1], layout.mlp_linears[-1]):
            path = f"{layout.layer_path(index)}.{linear}"
            originals[path] = model.get_submodule(path)
            wrapped = BottleneckedLinear(
                originals[path], layout.hidden_size, spec.rank, generator_for(spec.seed, "adapter", f"{index}.{linear}")
            ).to(layout.layer_device(model, index))
            replace_submodule(model, path, wrapped)
            for name, parameter in wrapped.bottleneck.named_parameters():
                trainable[f"{index}.{linear}.bottleneck.{name}"] = parameter

    def restore() -> None:
        for path, original in originals.items():
            replace_submodule(model, path, original)

    return AttachedAdapter(model, trainable, restore)


def _check_exact(model: PreTrainedModel, layout: DecoderLayout, index: int) -> None:
    layer = layout.layer(model, index)
    for linear in (*layout.attention_linears, *layout.mlp_linears):
        try:
            is_exact = isinstance(layer.get_submodule(linear), nn.Linear | Conv1D)
        except AttributeError:
            is_exact = False
        if not is_exact:
            raise ModelError(f"layer {index} cannot carry an adapter: it is not the full model's own layer here")
