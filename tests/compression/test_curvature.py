import pytest
import torch
from torch import Tensor, nn

from scaleot_core.compression.curvature import Curvature, measure_curvature
from scaleot_core.compression.public_text import next_token_loss
from scaleot_core.compression.rank import ProjectionBlock, split_fused
from scaleot_core.errors import ModelError
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import SilentReporter
from tests.support.tiny_models import FAMILY_CONFIGS, tiny_language_model

BLOCKS = torch.randint(3, 300, (4, 9), generator=torch.Generator().manual_seed(1))
LAYERS = (1, 2)


def measured(full: LanguageModel, *, batch_size: int = 4) -> dict[ProjectionBlock, Curvature]:
    names = (*full.layout.attention_linears, *full.layout.mlp_linears)
    return measure_curvature(full, BLOCKS, layers=LAYERS, names=names, batch_size=batch_size, reporter=SilentReporter())


def blocks_of(full: LanguageModel, name: str, rows: Tensor) -> list[Tensor]:
    """The rows of a projection's outputs: one block, or query, key and value."""
    fusion = full.layout.family.fusion
    if fusion is None or name != full.layout.attention_linears[0]:
        return [rows]
    return split_fused(rows, fusion, full.layout.num_attention_heads)


def inputs_and_output_gradients(full: LanguageModel, module: nn.Module) -> tuple[Tensor, Tensor]:
    """Both as (tokens, features), token by token but for the last of every block, which predicts nothing."""
    seen: list[Tensor] = []
    hook = module.register_forward_hook(lambda _, args, output: seen.extend((args[0], output)))
    module.weight.requires_grad_(True)
    loss = next_token_loss(full.model, BLOCKS) * 4 * 8
    hook.remove()
    gradient = torch.autograd.grad(loss, seen[1])[0]
    module.weight.requires_grad_(False)
    x, g = (each.detach().reshape(4, 9, -1)[:, :-1].flatten(0, 1) for each in (seen[0], gradient))
    return x, g


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_the_gradient_is_that_of_autograd(model_type: str) -> None:
    full = tiny_language_model(model_type)
    got = measured(full)
    for index in LAYERS:
        for name in (*full.layout.attention_linears, *full.layout.mlp_linears):
            weight = full.layout.layer(full.model, index).get_submodule(name).weight
            weight.requires_grad_(True)
            gradient = torch.autograd.grad(next_token_loss(full.model, BLOCKS), weight)[0]
            weight.requires_grad_(False)
            rows = gradient.T if full.layout.family.transposed else gradient
            for number, expected in enumerate(blocks_of(full, name, rows)):
                place = ProjectionBlock(index, name, number)
                torch.testing.assert_close(got[place].gradient, expected, rtol=1e-3, atol=1e-5, msg=str(place))


@pytest.mark.parametrize("model_type", ["llama", "opt", "gpt2", "gpt_neox"])
def test_the_factors_are_the_mean_outer_products_token_by_token(model_type: str) -> None:
    full = tiny_language_model(model_type)
    got = measured(full)
    for name in (full.layout.attention_linears[0], full.layout.attention_linears[-1], full.layout.mlp_linears[-1]):
        x, g = inputs_and_output_gradients(full, full.layout.layer(full.model, 2).get_submodule(name))
        assert len(x) == len(g) == 32
        expected_inputs = sum(torch.outer(token, token) for token in x) / 32
        for number, part in enumerate(blocks_of(full, name, g.T)):
            expected = sum(torch.outer(token, token) for token in part.T) / 32
            curvature = got[ProjectionBlock(2, name, number)]
            torch.testing.assert_close(curvature.inputs, expected_inputs, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(curvature.output_gradients, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_do_not_change_the_means(batch_size: int) -> None:
    full = tiny_language_model("llama")
    whole, split = measured(full), measured(full, batch_size=batch_size)
    assert whole.keys() == split.keys()
    for place, expected in whole.items():
        for got, wanted in zip(vars(split[place]).values(), vars(expected).values(), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5)


def test_maps_that_are_fed_the_same_share_one_matrix_of_inputs() -> None:
    got = measured(tiny_language_model("llama"))
    query, key, out = (got[ProjectionBlock(1, f"self_attn.{name}_proj")] for name in "qko")
    gate, up = (got[ProjectionBlock(1, f"mlp.{name}_proj")] for name in ("gate", "up"))
    assert query.inputs is key.inputs
    assert gate.inputs is up.inputs
    assert query.inputs is not out.inputs
    assert query.inputs is not gate.inputs


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_the_model_comes_back_as_it_was(model_type: str) -> None:
    full = tiny_language_model(model_type)
    before, state = full.model(BLOCKS).logits, {k: v.clone() for k, v in full.model.state_dict().items()}
    measured(full)
    assert torch.equal(full.model(BLOCKS).logits, before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in full.model.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in full.model.parameters())
    assert not any(module._forward_hooks for module in full.model.modules())


def test_a_model_whose_loss_is_not_finite_is_refused() -> None:
    full = tiny_language_model("llama")
    full.model.get_output_embeddings().weight.data.fill_(torch.inf)
    with pytest.raises(ModelError, match=r"the loss is (nan|inf) on public text.*instead of float16"):
        measured(full)
