"""How many parameters of a full model stand where, as plain numbers."""

from dataclasses import dataclass

from scaleot_core.models.loading import LanguageModel


@dataclass(frozen=True)
class LayerParameters:
    """The parameters of one decoder layer."""

    attention: int
    """In the weights of its attention's linear maps."""
    feed_forward: int
    """In the weights of its feed-forward part's linear maps."""
    other: int
    """Norms and biases, which leave unchanged with every layer that is kept."""


@dataclass(frozen=True)
class ParameterCounts:
    """The parameters of a full model."""

    layers: tuple[LayerParameters, ...]
    outside: int
    """Embeddings, last norm and head, which every emulator holds unchanged; a tied head counts once."""

    @property
    def total(self) -> int:
        """All parameters."""
        return self.outside + sum(layer.attention + layer.feed_forward + layer.other for layer in self.layers)


def count_parameters(full: LanguageModel) -> ParameterCounts:
    """Counts the parameters of a full model."""
    layers = tuple(_count_layer(full, index) for index in range(full.layout.num_layers))
    inside = sum(layer.attention + layer.feed_forward + layer.other for layer in layers)
    return ParameterCounts(layers, sum(parameter.numel() for parameter in full.model.parameters()) - inside)


def _count_layer(full: LanguageModel, index: int) -> LayerParameters:
    layer = full.layout.layer(full.model, index)

    def weights(linears: tuple[str, ...]) -> int:
        return sum(layer.get_submodule(name).get_parameter("weight").numel() for name in linears)

    attention, feed_forward = weights(full.layout.attention_linears), weights(full.layout.mlp_linears)
    total = sum(parameter.numel() for parameter in layer.parameters())
    return LayerParameters(attention, feed_forward, total - attention - feed_forward)
