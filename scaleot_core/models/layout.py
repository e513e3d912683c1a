"""A family's table row bound to one model's configuration: how its parts are addressed by original layer index."""

from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn
from transformers import PretrainedConfig

from scaleot_core.errors import ModelError
from scaleot_core.models.families import DecoderFamily, family_of


@dataclass(frozen=True)
class DecoderLayout:
    """Where the decoder layers of one model are, whether it is the full model or an emulator of it."""

    family: DecoderFamily
    num_layers: int
    hidden_size: int
    num_attention_heads: int

    @property
    def attention_linears(self) -> tuple[str, ...]:
        """The dotted names, inside a layer, of the linear maps of the attention."""
        return self.family.attention

    @property
    def mlp_linears(self) -> tuple[str, ...]:
        """The dotted names, inside a layer, of the linear maps of the feed-forward part."""
        return self.family.mlp

    def layer_path(self, index: int) -> str:
        """Returns the dotted path of the layer with this original index inside the model."""
        if not 0 <= index < self.num_layers:
            raise ModelError(f"layer index {index} is out of range: the model has layers 0 to {self.num_layers - 1}")
        return f"{self.family.layers}.{index}"

    def layer(self, model: nn.Module, index: int) -> nn.Module:
        """Returns what stands at this original index: the layer, or what an emulator put in its place."""
        return model.get_submodule(self.layer_path(index))

    def layer_device(self, model: nn.Module, index: int) -> torch.device:
        """Returns where the layer with this original index lies; one that holds nothing is where the model begins."""
        return next(chain(self.layer(model, index).parameters(), model.parameters())).device

    def replace_layer(self, model: nn.Module, index: int, replacement: nn.Module) -> None:
        """Puts ``replacement`` at this original index of ``model``."""
        replace_submodule(model, self.layer_path(index), replacement)


def replace_submodule(module: nn.Module, path: str, replacement: nn.Module) -> None:
    """Puts ``replacement`` at the dotted ``path`` inside ``module``, whatever stood there."""
    parent, _, name = path.rpartition(".")
    module.get_submodule(parent).register_module(name, replacement)


def layout_for(config: PretrainedConfig) -> DecoderLayout:
    """Returns the layout of the models of a transformers configuration.

    Raises:
        ModelError: the family has no row in the table.
    """
    return DecoderLayout(
        family=family_of(config.model_type),
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
    )
