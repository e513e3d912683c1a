import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from scaleot_core.errors import ModelError
from scaleot_core.models.families import FAMILIES, family_of
from scaleot_core.models.layout import replace_submodule
from tests.support.tiny_models import FAMILY_CONFIGS, tiny_language_model


def test_every_row_of_the_table_has_a_tiny_model() -> None:
    assert set(FAMILY_CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_a_row_names_every_linear_map_of_a_layer_and_nothing_else(model_type: str) -> None:
    full = tiny_language_model(model_type)
    named = {*full.layout.attention_linears, *full.layout.mlp_linears}
    for index in range(full.layout.num_layers):
        layer = full.layout.layer(full.model, index)
        assert {name for name, module in layer.named_modules() if isinstance(module, nn.Linear | Conv1D)} == named


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_a_row_says_how_weights_are_stored(model_type: str) -> None:
    full = tiny_language_model(model_type)
    layer, family = full.layout.layer(full.model, 0), full.layout.family
    first = layer.get_submodule(family.attention[0])
    assert isinstance(first, Conv1D) is family.transposed
    out_features = first.weight.shape[1] if family.transposed else first.weight.shape[0]
    assert (family.fusion is not None) is (out_features == 3 * full.layout.hidden_size)


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_a_row_says_what_a_layer_returns(model_type: str) -> None:
    full = tiny_language_model(model_type)
    seen = []
    layer = full.layout.layer(full.model, 1)
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(output))
    full.model(torch.tensor([[5, 6, 7]]))
    handle.remove()
    assert isinstance(seen[0], tuple) is full.layout.family.returns_tuple


def test_sliding_and_full_layers_both_stand_in_the_tiny_gemma() -> None:
    assert set(tiny_language_model("gemma3_text").model.config.layer_types) == {"sliding_attention", "full_attention"}


def test_an_unknown_family_gets_the_known_ones_listed() -> None:
    with pytest.raises(ModelError, match="unknown model family 'rwkv'") as error:
        family_of("rwkv")
    assert all(name in str(error.value) for name in FAMILIES)


def test_a_layer_out_of_range_is_refused() -> None:
    layout = tiny_language_model("llama").layout
    for index in (-1, 6):
        with pytest.raises(ModelError, match="layers 0 to 5"):
            layout.layer_path(index)


def test_replacing_a_submodule_by_its_path() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(1, 1)))
    replacement = nn.Identity()
    replace_submodule(model, "0.0", replacement)
    assert model.get_submodule("0.0") is replacement
