import pytest
import torch

from scaleot_core.compression.closed_form import _Moments, _solve, fit_harmonizers
from scaleot_core.compression.harmonizer import Harmonizer
from scaleot_core.errors import ModelError
from scaleot_core.progress import SilentReporter
from tests.compression.test_importance import random_blocks
from tests.support.tiny_models import tiny_language_model


class PlantedLayer(torch.nn.Module):
    """A layer that adds a linear map of low rank to its input."""

    def __init__(self, change: torch.Tensor) -> None:
        super().__init__()
        self.change = change

    def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return hidden_states + hidden_states @ self.change.T


def test_recovers_a_planted_linear_layer_of_its_own_rank() -> None:
    full = tiny_language_model("llama")
    generator = torch.Generator().manual_seed(0)
    change = 0.3 * torch.randn(16, 3, generator=generator) @ torch.randn(3, 16, generator=generator)
    full.layout.replace_layer(full.model, 2, PlantedLayer(change))
    fitted = fit_harmonizers(full, random_blocks(40), 6, batch_size=4, reporter=SilentReporter())
    harmonizer = Harmonizer(16, 6, layer_index=2, returns_tuple=False)
    down, up = fitted[2]
    harmonizer.load_state_dict({"down.weight": down, "up.weight": up})
    x = torch.randn(2, 5, 16, generator=generator)
    torch.testing.assert_close(harmonizer(x), x + x @ change.T, atol=0.02, rtol=0.02)


def test_is_nearer_to_every_layer_than_the_identity_and_gains_with_rank() -> None:
    full = tiny_language_model("gpt2")
    blocks = random_blocks(60)
    errors = {rank: _relative_errors(full, blocks, rank) for rank in (2, 16)}
    assert all(error < 1 for error in errors[2])
    assert all(wide < narrow for wide, narrow in zip(errors[16], errors[2], strict=True))


def _relative_errors(full, blocks: torch.Tensor, rank: int) -> list[float]:
    """The weighted squared error of each fitted harmonizer over that of the identity."""
    fitted = fit_harmonizers(full, blocks, rank, batch_size=8, reporter=SilentReporter())
    states = full.model(blocks, output_hidden_states=True).hidden_states
    errors = []
    for index in range(full.layout.num_layers - 1):  # the last state has passed the final norm
        x, y = states[index], states[index + 1]
        harmonizer = Harmonizer(16, rank, layer_index=index, returns_tuple=False)
        harmonizer.load_state_dict(dict(zip(("down.weight", "up.weight"), fitted[index], strict=True)))
        scale = x.norm(dim=-1, keepdim=True)
        errors.append(float((((y - harmonizer(x)) / scale) ** 2).sum() / (((y - x) / scale) ** 2).sum()))
    return errors


@pytest.mark.parametrize("directions", [1, 3])
def test_no_map_of_that_rank_is_nearer_to_what_the_layer_adds(directions: int) -> None:
    """The regression's own squared error, and the singular values left out of what it predicts: nothing does better."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator) * torch.linspace(0.3, 3, 6)
    added = x @ torch.randn(6, 6, generator=generator) + 0.5 * torch.randn(200, 6, generator=generator)
    down, up = _solve((x.T @ x).double(), (x.T @ added).double(), 2 * directions)
    error = float((torch.relu(x @ down.T) @ up.T - added).square().sum())

    regression = torch.linalg.lstsq(x, added).solution
    unexplained = float((x @ regression - added).square().sum())
    bound = unexplained + float(torch.linalg.svdvals(x @ regression)[directions:].square().sum())
    assert error == pytest.approx(bound, rel=1e-4)

    u, s, vh = torch.linalg.svd(regression)
    nearest_weights = u[:, :directions] * s[:directions] @ vh[:directions]
    assert float((x @ nearest_weights - added).square().sum()) > 1.05 * bound


def test_fewer_tokens_than_hidden_units_give_a_map_that_other_tokens_survive() -> None:
    """Six tokens leave ten directions of sixteen unseen: without the ridge there the map is any, or none at all."""
    full = tiny_language_model("llama")
    fitted = fit_harmonizers(full, random_blocks(1)[:, :6], 32, batch_size=1, reporter=SilentReporter())
    for down, up in fitted:
        regression = (up @ down) / 2  # of a pair of units only one lets a token through
        assert torch.isfinite(regression).all()
        assert float(torch.linalg.matrix_norm(regression, ord=2)) < 5


def test_a_token_of_huge_activations_weighs_no_more_than_another() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1, 5, 6, generator=generator) for _ in range(2))
    scale = torch.tensor([1, 1, 1e3, 1, 1])[:, None]
    plain, scaled = (_Moments(*torch.zeros(2, 6, 6, dtype=torch.float64)) for _ in range(2))
    plain.add(x, y)
    scaled.add(scale * x, scale * y)
    torch.testing.assert_close(scaled.inputs, plain.inputs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scaled.changes, plain.changes, rtol=1e-5, atol=1e-5)


def test_activations_past_float16_are_told_with_their_layer_and_cure() -> None:
    full = tiny_language_model("llama")
    full.model.half()
    full.layout.layer(full.model, 2).mlp.down_proj.weight.fill_(6e4)
    message = r"hidden states is (nan|inf) at layer 2 .*model\.dtype float32 or bfloat16 instead of float16"
    with pytest.raises(ModelError, match=message):
        fit_harmonizers(full, random_blocks(), 4, batch_size=4, reporter=SilentReporter())


def test_an_odd_rank_leaves_one_unit_silent() -> None:
    full = tiny_language_model("llama")
    down, up = fit_harmonizers(full, random_blocks(12), 5, batch_size=4, reporter=SilentReporter())[0]
    assert down.shape == (5, 16)
    assert up.shape == (16, 5)
    assert not down[-1].any()


def test_rank_1_has_room_for_no_pair_of_units_and_is_the_identity() -> None:
    full = tiny_language_model("llama")
    for down, up in fit_harmonizers(full, random_blocks(12), 1, batch_size=4, reporter=SilentReporter()):
        assert down.shape == (1, 16) and not down.any()
        assert up.shape == (16, 1) and not up.any()


@pytest.mark.parametrize("rank", [33, 40])
def test_a_rank_past_twice_the_hidden_size_computes_what_twice_the_hidden_size_does(rank: int) -> None:
    full, blocks = tiny_language_model("gpt2"), random_blocks(60)
    widest = fit_harmonizers(full, blocks, 32, batch_size=8, reporter=SilentReporter())
    fitted = fit_harmonizers(full, blocks, rank, batch_size=8, reporter=SilentReporter())
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    for (down, up), (widest_down, widest_up) in zip(fitted, widest, strict=True):
        assert down.shape == (rank, 16) and up.shape == (16, rank)
        expected = torch.relu(x @ widest_down.T) @ widest_up.T
        torch.testing.assert_close(torch.relu(x @ down.T) @ up.T, expected, atol=1e-5, rtol=1e-5)
    assert max(_relative_errors(full, blocks, rank)) < max(_relative_errors(full, blocks, 16))


def test_leaves_no_hook_behind() -> None:
    full = tiny_language_model("llama")
    fit_harmonizers(full, random_blocks(12), 4, batch_size=4, reporter=SilentReporter())
    assert not any(module._forward_hooks for module in full.model.modules())
