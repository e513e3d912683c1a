import pytest
import torch
from torch import Tensor

from scaleot_core.compression.activation_rank import nearest_in_output, truncate_rank_in_output
from scaleot_core.compression.rank import ProjectionBlock, projection_weight, truncate_rank
from scaleot_core.errors import ModelError
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import SilentReporter
from tests.support.tiny_models import FAMILY_CONFIGS, tiny_language_model

BLOCKS = torch.randint(3, 300, (6, 12), generator=torch.Generator().manual_seed(1))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def output_error(weight: Tensor, factors: tuple[Tensor, Tensor], inputs: Tensor) -> float:
    up, down = factors
    return float((inputs @ (weight - up @ down).T).square().sum())


def inputs_of_projections(full: LanguageModel, blocks: Tensor, names: tuple[str, ...]) -> dict[tuple[int, str], Tensor]:
    """What each map of layers 1 and 3 reads, (tokens, in), by the layer's index and the map's name."""
    seen: dict[tuple[int, str], Tensor] = {}
    hooks = [
        full.layout.layer(full.model, index)
        .get_submodule(name)
        .register_forward_pre_hook(
            lambda _, args, key=(index, name): seen.update({key: args[0].flatten(0, -2).clone()})
        )
        for index in (1, 3)
        for name in names
    ]
    full.model(input_ids=blocks)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_no_map_of_that_rank_is_nearer_in_output(rank: int) -> None:
    """The squared error is that of the outputs' own truncated singular values: no map can do better."""
    weight, inputs = random(12, 20), random(50, 20, seed=1) * torch.linspace(0.01, 3, 20)
    factors = truncate_rank_in_output(weight, inputs.T @ inputs, rank)
    assert (factors[0].shape, factors[1].shape) == ((12, rank), (rank, 20))
    bound = float(torch.linalg.svdvals(inputs @ weight.T)[rank:].square().sum())
    assert output_error(weight, factors, inputs) == pytest.approx(bound, rel=1e-3)
    assert output_error(weight, truncate_rank(weight, rank), inputs) > 1.05 * bound


def test_white_inputs_give_the_nearest_weights() -> None:
    weight = random(12, 20)
    up, down = truncate_rank_in_output(weight, torch.eye(20), 5)
    plain_up, plain_down = truncate_rank(weight, 5)
    torch.testing.assert_close(up @ down, plain_up @ plain_down, rtol=1e-4, atol=1e-4)


def test_full_rank_is_exact() -> None:
    weight, inputs = random(12, 20), random(50, 20, seed=1)
    up, down = truncate_rank_in_output(weight, inputs.T @ inputs, 12)
    torch.testing.assert_close(up @ down, weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_the_inputs_are_those_of_every_projection_on_the_public_text(model_type: str) -> None:
    full = tiny_language_model(model_type)
    names = (*full.layout.attention_linears, *full.layout.mlp_linears)
    factorize = nearest_in_output(full, BLOCKS, names, batch_size=4, reporter=SilentReporter())
    for (index, name), x in inputs_of_projections(full, BLOCKS, names).items():
        weight = projection_weight(full.layout.layer(full.model, index).get_submodule(name))
        expected = truncate_rank_in_output(weight, x.T @ x, 3)
        got = factorize(ProjectionBlock(index, name), weight, 3)
        torch.testing.assert_close(got[0] @ got[1], expected[0] @ expected[1], rtol=1e-3, atol=1e-3)
    assert not any(module._forward_pre_hooks for module in full.model.modules())


def test_activations_past_float16_are_told_with_their_place_and_cure() -> None:
    full = tiny_language_model("llama")
    full.model.half()
    full.layout.layer(full.model, 2).mlp.down_proj.weight.fill_(6e4)
    query = full.layout.attention_linears[0]
    factorize = nearest_in_output(full, BLOCKS, (query,), batch_size=4, reporter=SilentReporter())
    factorize(ProjectionBlock(2, query), random(16, 16), 3)
    message = (
        r"inputs is (nan|inf) at self_attn.q_proj of layer 3 .*model\.dtype float32 or bfloat16 instead of float16"
    )
    with pytest.raises(ModelError, match=message):
        factorize(ProjectionBlock(3, query), random(16, 16), 3)
