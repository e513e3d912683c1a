import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from scaleot_core.compression.builders import BUILDERS, Distillation, uniform
from scaleot_core.compression.builders.distilled import block_ends, build, distillation_loss
from scaleot_core.compression.builders.uniform import plan_uniform
from scaleot_core.compression.emulator import Emulator, describe_emulator
from scaleot_core.compression.plan import LayerPlan, LayerRole, PlannedLayer
from scaleot_core.compression.public_text import next_token_loss
from scaleot_core.errors import ModelError
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import SilentReporter
from scaleot_core.seeds import generator_for
from tests.compression.builders.requests import emulator_request, random_blocks, text_alone
from tests.support.reference import OffsiteTuningDistillation
from tests.support.tiny_models import FAMILY_CONFIGS, tiny_language_model

SILENT = SilentReporter()
KEPT = (1, 4)
"""Of layers 1 to 4 of six, at half."""


class LossReporter(SilentReporter):
    """Writes down the losses of the stage ``distillation``."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    @contextmanager
    def stage(self, name: str, *, steps: int) -> Iterator["LossReporter"]:
        assert name == "distillation"
        yield self
        assert len(self.losses) == steps

    def advance(self, steps: int = 1, *, loss: float | None = None) -> None:
        assert steps == 1
        assert loss is not None
        self.losses.append(loss)


def distilled(full: LanguageModel, blocks: torch.Tensor | None = None, **changes: object) -> Emulator:
    public = text_alone(random_blocks() if blocks is None else blocks)
    return build(full, emulator_request(**changes), public, reporter=SILENT)


def plan_of(*roles: LayerRole) -> LayerPlan:
    return LayerPlan(tuple(PlannedLayer(index, role) for index, role in enumerate(roles)))


def circling_blocks(count: int, seed: int) -> torch.Tensor:
    """Text that can be learnt: eight tokens in a circle."""
    starts = torch.randint(0, 8, (count, 1), generator=torch.Generator().manual_seed(seed))
    return 3 + (starts + torch.arange(12)) % 8


def entering_layer_5(model: LanguageModel | Emulator, blocks: torch.Tensor) -> torch.Tensor:
    """What leaves the middle, layers 1 to 4, and enters the adapter."""
    seen = []
    hook = model.layout.layer(model.model, 5).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.model(blocks)
    hook.remove()
    return seen[0]


def test_the_loss_is_the_papers_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    h_t, h_s = (3 * torch.randn(2, 3, 4, generator=generator) for _ in range(2))
    numbers, stand_ins = h_t.flatten().tolist(), h_s.flatten().tolist()
    rms = (sum(t * t for t in numbers) / len(numbers)) ** 0.5
    mean = sum(((t - s) / rms) ** 2 for t, s in zip(numbers, stand_ins, strict=True)) / len(numbers)
    got = distillation_loss(torch.tensor(1.25), [(h_t, h_s)], 30.0)
    assert float(got) == pytest.approx(1.25 + 30 * mean, rel=1e-6)


def test_several_blocks_count_as_their_mean_and_no_gradient_reaches_the_full_model() -> None:
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(3, 2, 1, 3, 4, generator=generator)
    pairs = [(theirs.clone().requires_grad_(), ours.clone().requires_grad_()) for theirs, ours in states]
    zero = torch.tensor(0.0)
    loss = distillation_loss(zero, pairs, 2.0)
    single = [float(distillation_loss(zero, [pair], 2.0).detach()) for pair in pairs]
    assert float(loss.detach()) == pytest.approx(sum(single) / 3, rel=1e-6)
    loss.backward()
    assert all(theirs.grad is None and bool(ours.grad.any()) for theirs, ours in pairs)


def test_hidden_states_are_compared_where_a_run_of_layers_without_an_adapter_ends() -> None:
    def ends(adapter: set[int]) -> tuple[int, ...]:
        return block_ends(plan_uniform(8, adapter, 0.5))

    assert ends({0, 1, 6, 7}) == (5,)
    assert ends({2, 5}) == (1, 4, 7)
    assert ends({0, 3, 4}) == (2, 7)
    assert ends(set()) == (7,)
    assert ends(set(range(8))) == ()


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_agrees_step_by_step_with_the_literal_transcription(model_type: str) -> None:
    full, blocks, reporter = tiny_language_model(model_type), random_blocks(), LossReporter()
    settings = Distillation(steps=4, learning_rate=1e-3, hidden_state_weight=30.0)
    request = emulator_request(distillation=settings, seed=5)
    emulator = build(full, request, text_alone(blocks), reporter=reporter)
    dropped = uniform.build(full, request, text_alone(blocks), reporter=SILENT)
    literal = OffsiteTuningDistillation(full, dropped.model, list(KEPT), first=1, last=4)
    order = torch.randperm(16, generator=generator_for(5, "distillation"))
    for number, rows in enumerate(order.split(4), start=1):
        loss = literal.step(number, 4, blocks[rows], 30.0, 1e-3)
        assert loss == pytest.approx(reporter.losses[number - 1], rel=1e-4)
    start = dict(dropped.model.named_parameters())
    expected = dict(literal.student.named_parameters())
    for name, parameter in emulator.model.named_parameters():
        moved, wanted = parameter - start[name], (expected[name] - start[name]).detach()
        torch.testing.assert_close(moved, wanted, atol=2e-5, rtol=1e-2)


def test_it_lowers_the_whole_loss_on_text_it_has_not_read() -> None:
    full, held_out = tiny_language_model("llama"), random_blocks(seed=1)
    request = emulator_request(distillation=Distillation(steps=60, learning_rate=5e-3, hidden_state_weight=30.0))
    target = entering_layer_5(full, held_out)
    losses = []
    for builder in (uniform.build, build):
        emulator = builder(full, request, text_alone(random_blocks(64)), reporter=SILENT)
        states = [(target, entering_layer_5(emulator, held_out))]
        losses.append(float(distillation_loss(next_token_loss(emulator.model, held_out), states, 30.0)))
    assert losses[1] < 0.8 * losses[0]


def test_it_lowers_the_language_loss_on_text_it_has_not_read() -> None:
    full, held_out = tiny_language_model("llama"), circling_blocks(16, seed=1)
    request = emulator_request(distillation=Distillation(steps=60, learning_rate=5e-3, hidden_state_weight=1.0))
    public = text_alone(circling_blocks(64, seed=0))
    dropped, after = (builder(full, request, public, reporter=SILENT) for builder in (uniform.build, build))
    assert next_token_loss(after.model, held_out) < next_token_loss(dropped.model, held_out) - 0.5


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_but_the_kept_layers_stays_to_the_bit(model_type: str, dtype: torch.dtype) -> None:
    full = tiny_language_model(model_type)
    for parameter in full.model.parameters():  # as loading does: buffers stay float32
        parameter.data = parameter.data.to(dtype)
    original = copy.deepcopy(full.model.state_dict())
    emulator = distilled(full, adapter=frozenset({0, 3}))
    a, k, d = LayerRole.ADAPTER, LayerRole.KEPT, LayerRole.DROPPED
    assert emulator.plan == plan_of(a, k, d, a, d, k)  # of 1, 2, 4 and 5 both ends stay
    kept = tuple(f"{full.layout.layer_path(index)}." for index in (1, 5))
    moved = set()
    for name, tensor in emulator.model.state_dict().items():
        assert tensor.dtype is original[name].dtype, name
        assert torch.isfinite(tensor).all(), name
        assert name.startswith(kept) or torch.equal(tensor, original[name]), name
        moved |= {prefix for prefix in kept if name.startswith(prefix) and not torch.equal(tensor, original[name])}
    assert moved == set(kept)
    assert all(torch.equal(tensor, original[name]) for name, tensor in full.model.state_dict().items())


def test_both_models_come_back_frozen_and_without_hooks() -> None:
    full = tiny_language_model("llama")
    for model in (full.model, distilled(full).model):
        assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
        assert not any(module._forward_hooks for module in model.modules())
        assert not model.training


def test_trained_layers_are_no_longer_verbatim() -> None:
    full = tiny_language_model("llama")
    total = sum(p.numel() for p in full.model.parameters())
    layer = sum(p.numel() for p in full.layout.layer(full.model, 0).parameters())
    dropped = uniform.build(full, emulator_request(), text_alone(random_blocks()), reporter=SILENT)
    assert describe_emulator(dropped, full).verbatim_share == pytest.approx((total - 2 * layer) / total)
    report = describe_emulator(distilled(full), full)
    assert report.parameters == total - 2 * layer
    assert report.verbatim_share == pytest.approx((total - 4 * layer) / total)


def test_a_distillation_that_diverges_is_told_with_its_step_and_cure() -> None:
    wild = Distillation(steps=9, learning_rate=1e30, hidden_state_weight=30.0)
    with pytest.raises(ModelError, match=r"of 9 steps: take a smaller emulator.distillation_learning_rate .*1e\+30"):
        distilled(tiny_language_model("llama"), distillation=wild)


def test_one_seed_gives_one_emulator() -> None:
    full = tiny_language_model("llama")
    first, again, other = (distilled(full, seed=seed).model.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_with_nothing_kept_there_is_nothing_to_train() -> None:
    full = tiny_language_model("llama")
    emulator = distilled(full, replaced_layer_share=1.0)
    assert emulator.plan.indices(LayerRole.DROPPED) == (1, 2, 3, 4)
    assert describe_emulator(emulator, full).verbatim_share < 1
    assert distilled(full, adapter=frozenset(range(6))).plan == plan_of(*[LayerRole.ADAPTER] * 6)


def test_distilled_stands_in_the_table() -> None:
    assert BUILDERS["distilled"] is build
