import pytest
import torch
from transformers import DynamicCache

from scaleot_core.compression.harmonizer import DroppedLayer, Harmonizer
from tests.support.tiny_models import FAMILY_CONFIGS, tiny_language_model


def test_a_fresh_harmonizer_is_the_identity_and_can_learn() -> None:
    harmonizer = Harmonizer(16, 4, layer_index=0, returns_tuple=False)
    x = torch.randn(2, 3, 16)
    assert torch.equal(harmonizer(x), x)
    harmonizer(x).square().sum().backward()
    assert harmonizer.up.weight.grad.abs().sum() > 0


def test_computes_the_residual_bottleneck() -> None:
    harmonizer = Harmonizer(16, 4, layer_index=0, returns_tuple=False)
    torch.nn.init.normal_(harmonizer.up.weight)
    x = torch.randn(2, 3, 16)
    expected = x + torch.relu(x @ harmonizer.down.weight.T) @ harmonizer.up.weight.T
    torch.testing.assert_close(harmonizer(x), expected)


def test_keeps_the_type_of_the_hidden_states() -> None:
    harmonizer = Harmonizer(16, 4, layer_index=0, returns_tuple=False)
    assert harmonizer(torch.randn(1, 2, 16, dtype=torch.bfloat16)).dtype is torch.bfloat16


@pytest.mark.parametrize("stand_in", [lambda **k: Harmonizer(16, 4, **k), DroppedLayer])
def test_counts_tokens_in_the_cache(stand_in) -> None:
    cache = DynamicCache()
    layer = stand_in(layer_index=0, returns_tuple=False)
    layer(torch.randn(2, 5, 16), cache=cache)
    layer(torch.randn(2, 1, 16), cache)
    assert cache.get_seq_length(0) == 6


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_stands_in_for_any_layer_of_any_family_under_the_models_own_forward(model_type: str) -> None:
    full = tiny_language_model(model_type)
    ids = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(1))
    for index in range(full.layout.num_layers):
        fresh = Harmonizer(16, 4, layer_index=index, returns_tuple=full.layout.family.returns_tuple)
        full.layout.replace_layer(full.model, index, fresh)
    assert torch.isfinite(full.model(ids).logits).all()


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
@pytest.mark.parametrize("replaced", [{0}, {2, 5}])
def test_generation_with_a_cache_equals_generation_without(model_type: str, replaced: set[int]) -> None:
    full = tiny_language_model(model_type)
    for index in replaced:
        fresh = Harmonizer(16, 4, layer_index=index, returns_tuple=full.layout.family.returns_tuple)
        torch.nn.init.normal_(fresh.up.weight, std=0.1)
        full.layout.replace_layer(full.model, index, fresh)
    ids = torch.randint(3, 300, (1, 10), generator=torch.Generator().manual_seed(1))
    generate = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached = full.model.generate(ids, use_cache=True, **generate)
    plain = full.model.generate(ids, use_cache=False, **generate)
    assert torch.equal(cached, plain)
