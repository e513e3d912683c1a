import dataclasses
import itertools

import pytest
import torch

from scaleot_core.compression.closed_form import fit_harmonizers
from scaleot_core.compression.importance import (
    SwappableLayers,
    _split,
    estimate_importance,
    rewards_of,
    sample_replaced,
)
from scaleot_core.errors import ModelError
from scaleot_core.progress import SilentReporter
from scaleot_core.seeds import generator_for
from tests.support.importance import importance_settings
from tests.support.reference import DynamicLayerReplace
from tests.support.tiny_models import FAMILY_CONFIGS, tiny_language_model

SETTINGS = importance_settings()


def random_blocks(count: int = 20, tokens: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 300, (count, tokens), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("regroup", ["random", "fixed"])
@pytest.mark.parametrize(("model_type", "layers"), [("llama", 8), ("llama", 9), ("bloom", 8)])
def test_agrees_step_by_step_with_the_literal_transcription(model_type: str, layers: int, regroup: str) -> None:
    full = tiny_language_model(model_type, layers=layers)
    settings = dataclasses.replace(SETTINGS, regroup=regroup)
    blocks = random_blocks()
    report = estimate_importance(full, blocks, settings, reporter=SilentReporter())
    literal = DynamicLayerReplace(full, blocks, settings)
    train, score = (
        _cycle(literal.d_t, generator_for(settings.seed, "train")),
        _cycle(literal.d_v, generator_for(settings.seed, "score")),
    )
    for step in range(1, settings.steps + 1):
        assert literal.train_step(step, next(train)) == pytest.approx(report.training_losses[step - 1], rel=1e-5)
        if step % settings.score_every_steps == 0:
            literal.score_step(next(score))
    assert report.scores == pytest.approx(literal.scores, rel=1e-3, abs=1e-7)
    assert any(score != 0 for score in report.scores)
    for index in range(layers):
        torch.testing.assert_close(
            report.harmonizers[f"{index}.up.weight"], literal.ups[index].detach(), atol=1e-5, rtol=1e-3
        )


def _cycle(blocks: list[torch.Tensor], generator: torch.Generator):
    while True:
        order = torch.randperm(len(blocks), generator=generator).tolist()
        for start in range(0, len(order), SETTINGS.batch_size):
            yield torch.stack([blocks[i] for i in order[start : start + SETTINGS.batch_size]])


@pytest.mark.parametrize("regroup", ["random", "fixed"])
@pytest.mark.parametrize(("layers", "group_size"), [(24, 4), (12, 2), (30, 6)])
def test_half_of_every_even_group_is_replaced(layers: int, group_size: int, regroup: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(layers, generator=generator)
    for _ in range(50):
        replaced = sample_replaced(scores, group_size, regroup, generator)
        assert len(replaced) == layers // 2
        if regroup == "fixed":
            for start in range(0, layers, group_size):
                assert len(replaced & set(range(start, start + group_size))) == group_size // 2


def test_a_group_of_odd_length_keeps_one_more_than_it_replaces() -> None:
    replaced = sample_replaced(torch.zeros(5), 5, "fixed", torch.Generator().manual_seed(0))
    assert len(replaced) == 2


@pytest.mark.parametrize("regroup", ["random", "fixed"])
@pytest.mark.parametrize("layers", [3, 5, 9])
def test_a_layer_left_over_is_replaced_at_times_like_any_other(layers: int, regroup: str) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [sample_replaced(torch.zeros(layers), 4, regroup, generator) for _ in range(50)]
    assert frozenset().union(*draws) == frozenset(range(layers))


def test_layers_with_higher_scores_are_kept_more_often() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.tensor([3.0, -3.0] * 4)
    counts = torch.zeros(8)
    for _ in range(400):
        counts[list(sample_replaced(scores, 4, "random", generator))] += 1
    assert counts[1::2].min() > counts[::2].max()


def test_rewards_sum_to_zero_and_rank_the_smaller_loss_higher() -> None:
    for kind in ("raw", "normalised"):
        rewards = rewards_of([2.0, 1.0, 3.0], kind)
        assert sum(rewards) == pytest.approx(0)
        assert rewards[1] > rewards[0] > rewards[2]
    assert torch.tensor(rewards_of([12.0, 11.0, 13.0], "normalised")).std() == pytest.approx(1)
    assert rewards_of([1.0, 1.0], "normalised") == (0.0, 0.0)


@pytest.mark.parametrize(("reward", "deviation"), [("raw", None), ("normalised", 1.0)])
def test_the_scores_move_by_the_reward_that_the_settings_name(reward: str, deviation: float | None) -> None:
    full = tiny_language_model("llama")
    settings = dataclasses.replace(SETTINGS, reward=reward, steps=4)
    report = estimate_importance(full, random_blocks(), settings, reporter=SilentReporter())
    assert len(report.history) == 2
    for update in report.history:
        rewards = torch.tensor(update.rewards, dtype=torch.float64)
        expected = deviation or torch.tensor(update.losses, dtype=torch.float64).neg().exp().std()
        assert float(rewards.mean()) == pytest.approx(0, abs=1e-9)
        assert float(rewards.std()) == pytest.approx(float(expected))


def test_scores_are_said_to_be_of_fixed_groups_only_where_groups_stay() -> None:
    assert importance_settings(regroup="random", group_size=4).fixed_group_size is None
    assert importance_settings(regroup="fixed", group_size=4).fixed_group_size == 4


def test_the_scores_recover_a_planted_important_layer() -> None:
    """A model in which one layer alone does anything: the others have output projections near zero."""
    full = tiny_language_model("llama", layers=8)
    planted = 5
    for index in range(8):
        layer = full.layout.layer(full.model, index)
        for name in (full.layout.attention_linears[-1], full.layout.mlp_linears[-1]):
            layer.get_submodule(name).weight.data.mul_(3.0 if index == planted else 1e-3)
    text = full.model.generate(random_blocks(24, 2), do_sample=True, max_new_tokens=14, pad_token_id=0)
    settings = dataclasses.replace(SETTINGS, steps=60, reward="normalised", score_learning_rate=0.5)
    report = estimate_importance(full, text, settings, reporter=SilentReporter())
    assert max(range(8), key=lambda index: report.scores[index]) == planted


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_the_model_comes_back_untouched(model_type: str) -> None:
    full = tiny_language_model(model_type)
    before = {name: tensor.clone() for name, tensor in full.model.state_dict().items()}
    blocks = random_blocks()
    logits = full.model(blocks[:2]).logits
    settings = dataclasses.replace(SETTINGS, steps=2, harmonizer_start="closed_form")
    estimate_importance(full, blocks, settings, reporter=SilentReporter())
    after = full.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(full.model(blocks[:2]).logits, logits)


def test_the_same_seed_repeats_to_the_last_digit_and_another_does_not() -> None:
    full, blocks = tiny_language_model("gpt2"), random_blocks()
    first, again = (estimate_importance(full, blocks, SETTINGS, reporter=SilentReporter()) for _ in range(2))
    other = estimate_importance(full, blocks, dataclasses.replace(SETTINGS, seed=4), reporter=SilentReporter())
    assert (first.scores, first.training_losses) == (again.scores, again.training_losses)
    assert first.training_losses != other.training_losses


def test_harmonizers_learn() -> None:
    full = tiny_language_model("llama")
    changes = {"steps": 200, "score_every_steps": 200, "harmonizer_rank": 16, "harmonizer_learning_rate": 0.03}
    settings = dataclasses.replace(SETTINGS, **changes)
    report = estimate_importance(full, random_blocks(), settings, reporter=SilentReporter())
    losses = report.training_losses
    assert sum(losses[-20:]) < 0.97 * sum(losses[:20])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": 1}, "at least 2 candidates"),
        ({"group_size": 1}, "at least 2 layers"),
        ({"candidates": 30, "regroup": "fixed", "group_size": 2}, "distinct"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, object], message: str) -> None:
    settings = dataclasses.replace(SETTINGS, **change)  # type: ignore[arg-type]
    full = tiny_language_model("llama", layers=4)
    with pytest.raises(ModelError, match=message):
        estimate_importance(full, random_blocks(), settings, reporter=SilentReporter())


@pytest.mark.parametrize(
    ("score_every_steps", "message"),
    [
        (100, r"the training loss is (nan|inf) at step 2 of 8"),
        (1, r"a candidate's loss is (nan|inf) at step 1 of 8"),
    ],
)
def test_a_loss_that_is_not_finite_is_told_with_its_step_and_cure(score_every_steps: int, message: str) -> None:
    changes = {"score_every_steps": score_every_steps, "harmonizer_learning_rate": 1e30, "regroup": "fixed"}
    settings = dataclasses.replace(SETTINGS, **changes)
    full = tiny_language_model("llama", layers=8)
    logits = full.model(random_blocks(2)).logits
    with pytest.raises(ModelError, match=message + ".*smaller harmonizer_learning_rate.*bfloat16 instead of float16"):
        estimate_importance(full, random_blocks(), settings, reporter=SilentReporter())
    assert torch.equal(full.model(random_blocks(2)).logits, logits), "the model comes back untouched"


def test_harmonizers_that_the_last_step_broke_are_told() -> None:
    """The loss is finite, its gradient is too large for float16."""
    full = tiny_language_model("llama", layers=8)
    full.model.half()
    settings = dataclasses.replace(SETTINGS, steps=1, hidden_state_weight=1e9)
    with pytest.raises(ModelError, match=r"a harmonizer's weight is nan at step 1 of 1"):
        estimate_importance(full, random_blocks(), settings, reporter=SilentReporter())


def test_every_harmonizer_starts_from_the_regression_of_its_own_layer_on_training_text_alone() -> None:
    full, blocks = tiny_language_model("llama"), random_blocks()
    changes = {"harmonizer_start": "closed_form", "harmonizer_learning_rate": 0.0, "steps": 1}
    settings = dataclasses.replace(SETTINGS, **changes)
    report = estimate_importance(full, blocks, settings, reporter=SilentReporter())
    train_blocks, _ = _split(blocks, settings.seed)
    fitted = fit_harmonizers(
        full,
        train_blocks[: settings.closed_form_blocks],
        settings.harmonizer_rank,
        batch_size=settings.batch_size,
        reporter=SilentReporter(),
    )
    for index, (down, up) in enumerate(fitted):
        assert torch.equal(report.harmonizers[f"{index}.down.weight"], down)
        assert torch.equal(report.harmonizers[f"{index}.up.weight"], up)


@pytest.mark.parametrize("rank", [1, 40])
def test_harmonizers_of_any_rank_start_from_the_closed_form(rank: int) -> None:
    settings = dataclasses.replace(SETTINGS, harmonizer_start="closed_form", harmonizer_rank=rank)
    report = estimate_importance(tiny_language_model("llama"), random_blocks(), settings, reporter=SilentReporter())
    assert report.harmonizers["0.down.weight"].shape == (rank, 16)
    assert len(report.training_losses) == settings.steps


def test_a_model_of_one_layer_is_refused() -> None:
    full = tiny_language_model("llama", layers=1)
    with pytest.raises(ModelError, match="one alone"):
        estimate_importance(full, random_blocks(), SETTINGS, reporter=SilentReporter())


def test_too_little_text_is_refused() -> None:
    with pytest.raises(ModelError, match="at least 10 blocks"):
        estimate_importance(tiny_language_model("llama"), random_blocks(9), SETTINGS, reporter=SilentReporter())


def test_training_and_scoring_text_are_disjoint() -> None:
    train, score = _split(random_blocks(40), seed=1)
    assert len(train) + len(score) == 40
    assert not any(torch.equal(a, b) for a, b in itertools.product(train, score))


@pytest.mark.parametrize("model_type", ["llama", "bloom"])
def test_the_hidden_state_loss_is_the_relative_distance_of_the_last_layers_output(model_type: str) -> None:
    """L_CE + w mean(((h_T - h_S) / rms(h_T))^2), the hidden states read off by hand."""
    full = tiny_language_model(model_type, layers=8)
    batch = random_blocks(count=3)
    outputs = []
    last = full.layout.layer(full.model, 7)
    hook = last.register_forward_hook(lambda _, __, got: outputs.append(got[0] if isinstance(got, tuple) else got))
    with SwappableLayers(full, SETTINGS) as swappable:
        for harmonizer in swappable.harmonizers:
            torch.nn.init.normal_(harmonizer.up.weight, generator=torch.Generator().manual_seed(5))
        plain = swappable.loss(frozenset({2, 5}), batch)
        full_loss = swappable.loss(frozenset(), batch)
        both = swappable.loss_with_hidden_states(frozenset({2, 5}), batch, 3.0)
    hook.remove()
    replaced_states, full_states = outputs[0], outputs[1]
    rms = (full_states**2).mean().sqrt()
    expected = plain + 3.0 * (((full_states - replaced_states) / rms) ** 2).mean()
    assert float(both.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(both.detach()) != pytest.approx(float(plain.detach()), rel=1e-3)
    assert float(full_loss.detach()) > 0


def test_the_hidden_state_loss_is_learnt_and_leaves_the_model_untouched() -> None:
    full = tiny_language_model("llama", layers=8)
    before = full.model(random_blocks(2)).logits
    settings = dataclasses.replace(SETTINGS, hidden_state_weight=2.0)
    plain = estimate_importance(full, random_blocks(), SETTINGS, reporter=SilentReporter())
    both = estimate_importance(full, random_blocks(), settings, reporter=SilentReporter())
    assert torch.equal(full.model(random_blocks(2)).logits, before)
    assert both.training_losses[0] > plain.training_losses[0]
    assert any(not torch.equal(both.harmonizers[name], plain.harmonizers[name]) for name in plain.harmonizers)
