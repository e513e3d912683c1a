import math

import pytest
import torch

from scaleot_core.compression.adaptation import adaptation_scores
from scaleot_core.compression.public_text import next_token_loss
from scaleot_core.errors import ModelError
from scaleot_core.progress import SilentReporter
from tests.support.tiny_models import FAMILY_CONFIGS, tiny_language_model

BLOCKS = torch.randint(3, 300, (5, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_the_score_is_the_root_mean_square_over_batches_of_the_gradient_norm(model_type: str) -> None:
    full = tiny_language_model(model_type)
    got = adaptation_scores(full, BLOCKS, batch_size=2, reporter=SilentReporter())
    names = (*full.layout.attention_linears, *full.layout.mlp_linears)
    expected = []
    for index in range(full.layout.num_layers):
        layer = full.layout.layer(full.model, index)
        weights = [layer.get_parameter(f"{name}.weight") for name in names]
        squares = 0.0
        for batch in (BLOCKS[:2], BLOCKS[2:4], BLOCKS[4:]):
            for weight in weights:
                weight.requires_grad_(True)
            gradients = torch.autograd.grad(next_token_loss(full.model, batch), weights)
            squares += sum(float(gradient.square().sum()) for gradient in gradients)
            for weight in weights:
                weight.requires_grad_(False)
        expected.append((squares / 3) ** 0.5)
    assert got == pytest.approx(expected, rel=1e-4)


def test_the_model_comes_back_frozen_and_without_gradients() -> None:
    full = tiny_language_model("llama")
    adaptation_scores(full, BLOCKS, batch_size=4, reporter=SilentReporter())
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in full.model.parameters())


def test_a_layer_that_the_loss_does_not_depend_on_has_no_gradient() -> None:
    full = tiny_language_model("llama")
    layer = full.layout.layer(full.model, 3)
    for name in (full.layout.attention_linears[-1], full.layout.mlp_linears[-1]):
        layer.get_parameter(f"{name}.weight").data.zero_()
    for name in (*full.layout.attention_linears[:-1], *full.layout.mlp_linears[:-1]):
        layer.get_parameter(f"{name}.weight").data.zero_()
    scores = adaptation_scores(full, BLOCKS, batch_size=4, reporter=SilentReporter())
    assert scores[3] == 0
    assert all(score > 0 for index, score in enumerate(scores) if index != 3)


def test_a_loss_or_a_gradient_past_the_model_s_range_is_refused_and_the_model_comes_back_frozen() -> None:
    full = tiny_language_model("llama")
    full.model.get_input_embeddings().weight.data[5] = math.inf
    with pytest.raises(ModelError, match="the loss is nan on public text"):
        adaptation_scores(full, torch.full((2, 12), 5), batch_size=2, reporter=SilentReporter())
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in full.model.parameters())
    huge = tiny_language_model("llama")
    huge.model.lm_head.weight.data *= 1e25  # a loss of some 1e25, and the square of its gradient is past float32
    with pytest.raises(ModelError, match="the gradient's size is inf"):
        adaptation_scores(huge, BLOCKS, batch_size=2, reporter=SilentReporter())
