import math

import pytest
import torch

from scaleot_core.compression.activations import observe_layers
from scaleot_core.compression.controls import activation_changes, leave_one_out, random_scores
from scaleot_core.compression.harmonizer import DroppedLayer
from scaleot_core.errors import ModelError
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import SilentReporter
from tests.compression.test_cka import cka_by_definition
from tests.compression.test_importance import random_blocks
from tests.support.tiny_models import FAMILY_CONFIGS, tiny_language_model

IDENTITY = 2
SILENT = {"batch_size": 4, "reporter": SilentReporter()}


class Rotation(torch.nn.Module):
    """A layer that turns every two neighbouring features by one angle."""

    def __init__(self, angle: float) -> None:
        super().__init__()
        turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        self.turns = torch.block_diag(*[turn] * 8)

    def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return hidden_states @ self.turns


class Scaling(torch.nn.Module):
    """A layer that multiplies by one number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return self.factor * hidden_states


class FailingLayer(torch.nn.Module):
    """A layer that breaks down."""

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
        raise ArithmeticError("broken")


def with_layer(layer: torch.nn.Module) -> LanguageModel:
    """A tiny Llama in which ``layer`` stands at the index ``IDENTITY``."""
    full = tiny_language_model("llama")
    full.layout.replace_layer(full.model, IDENTITY, layer)
    return full


def mean_loss(full: LanguageModel, blocks: torch.Tensor) -> float:
    return float(full.model(blocks, labels=blocks).loss)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text"])
def test_a_layer_that_is_the_identity_has_no_importance_and_the_others_have(model_type: str) -> None:
    full = tiny_language_model(model_type)
    identity = DroppedLayer(layer_index=IDENTITY, returns_tuple=full.layout.family.returns_tuple)
    full.layout.replace_layer(full.model, IDENTITY, identity)
    blocks = random_blocks(10)
    changes = activation_changes(full, blocks, **SILENT)
    losses = leave_one_out(full, blocks, **SILENT)
    assert changes.angular_change[IDENTITY] == 0
    assert changes.cka[IDENTITY] == pytest.approx(0, abs=1e-12)
    assert losses[IDENTITY] == 0
    for index in set(range(6)) - {IDENTITY}:
        assert changes.angular_change[index] > 0.01
        assert changes.cka[index] > 1e-4
        assert abs(losses[index]) > 1e-4


def test_leave_one_out_is_the_loss_without_the_layer_less_the_loss_with_it() -> None:
    full, blocks = tiny_language_model("llama"), random_blocks(10)
    losses = leave_one_out(full, blocks, **SILENT)
    before = mean_loss(full, blocks)
    full.layout.replace_layer(full.model, 3, DroppedLayer(layer_index=3, returns_tuple=False))
    assert losses[3] == pytest.approx(mean_loss(full, blocks) - before, abs=1e-5)


@pytest.mark.parametrize("angle", [1e-5, 0.3, math.pi / 2, 3.0, math.pi])
def test_angular_change_is_the_angle_over_pi(angle: float) -> None:
    change = activation_changes(with_layer(Rotation(angle)), random_blocks(6), **SILENT).angular_change
    assert change[IDENTITY] == pytest.approx(angle / math.pi, rel=0.02 if angle < 1e-3 else 1e-5)


def test_angular_change_equals_the_mean_arccos_of_the_definition() -> None:
    full, blocks = tiny_language_model("gpt2"), random_blocks(10)
    states = full.model(blocks, output_hidden_states=True).hidden_states
    cosine = torch.nn.functional.cosine_similarity(states[1].double(), states[2].double(), dim=-1)
    expected = float((cosine.arccos() / math.pi).mean())
    assert activation_changes(full, blocks, **SILENT).angular_change[1] == pytest.approx(expected, rel=1e-5)


def test_cka_importance_is_one_less_the_cka_of_input_and_output() -> None:
    full, blocks = tiny_language_model("gpt2"), random_blocks(10)
    states = full.model(blocks, output_hidden_states=True).hidden_states
    scores = activation_changes(full, blocks, **SILENT).cka
    assert scores[1] == pytest.approx(1 - cka_by_definition(states[1], states[2]), rel=1e-4)
    assert activation_changes(with_layer(Rotation(0.3)), blocks, **SILENT).cka[IDENTITY] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_the_model_comes_back_untouched_and_the_batch_size_does_not_matter(model_type: str) -> None:
    full, blocks = tiny_language_model(model_type), random_blocks(6)
    before = {name: id(module) for name, module in full.model.named_modules()}
    losses, changes = leave_one_out(full, blocks, **SILENT), activation_changes(full, blocks, **SILENT)
    assert {name: id(module) for name, module in full.model.named_modules()} == before
    assert not any(module._forward_hooks for module in full.model.modules())
    whole = {"batch_size": 6, "reporter": SilentReporter()}
    assert leave_one_out(full, blocks, **whole) == pytest.approx(losses, abs=1e-4)
    assert activation_changes(full, blocks, **whole).cka == pytest.approx(changes.cka, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("control", [leave_one_out, activation_changes])
def test_the_model_is_restored_after_an_error(control) -> None:
    full, blocks = tiny_language_model("llama"), random_blocks(6)
    layers = [full.layout.layer(full.model, index) for index in range(5)]
    full.layout.replace_layer(full.model, 5, FailingLayer())
    with pytest.raises(ArithmeticError):
        control(full, blocks, **SILENT)
    assert [full.layout.layer(full.model, index) for index in range(5)] == layers
    assert not any(module._forward_hooks for module in full.model.modules())


def test_leave_one_out_puts_a_layer_back_when_the_model_fails_without_it() -> None:
    full, blocks = tiny_language_model("llama"), random_blocks(6)
    first = full.layout.layer(full.model, 0)
    calls = iter(range(10))

    def fails_the_second_time(*_: object) -> None:
        if next(calls) == 1:
            raise ArithmeticError("broken")

    full.layout.layer(full.model, 5).register_forward_hook(fails_the_second_time)
    with pytest.raises(ArithmeticError):
        leave_one_out(full, blocks, batch_size=6, reporter=SilentReporter())
    assert full.layout.layer(full.model, 0) is first


def test_a_loss_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ModelError, match="is nan"):
        leave_one_out(with_layer(Scaling(float("nan"))), random_blocks(6), **SILENT)


def test_layers_are_observed_in_their_order_in_every_batch_and_hand_on_what_they_wrote() -> None:
    full, seen = tiny_language_model("llama"), []

    def observe(index: int, x: torch.Tensor, y: torch.Tensor) -> None:
        if index:
            assert torch.equal(x, seen[-1][1])
        seen.append((index, y))

    observe_layers(full, random_blocks(6), observe, batch_size=4, reporter=SilentReporter(), stage="test")
    assert [index for index, _ in seen] == [*range(6), *range(6)]
    assert [output.shape[0] for _, output in seen] == [4] * 6 + [2] * 6


def test_random_scores_follow_the_seed() -> None:
    assert random_scores(30, 1) == random_scores(30, 1) != random_scores(30, 2)
    assert all(0 <= score < 1 for score in random_scores(30, 1))
