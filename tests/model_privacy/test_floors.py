from dataclasses import replace

import pytest
import torch

from scaleot_core.evaluation import Metrics
from scaleot_core.model_privacy.floors import (
    Floors,
    MajorityFloor,
    majority_floor,
    measure_floors,
    random_initialisation,
)
from scaleot_core.model_privacy.recovery import Recovery, Yardstick
from scaleot_core.progress import SilentReporter
from scaleot_core.training.data import AnswerRecord, ChoiceRecord, CompletionRecord
from tests.support.tiny_models import tiny_language_model


def choices(*labels: int) -> list[ChoiceRecord]:
    return [ChoiceRecord(f"film {i}", ("a", "b", "c"), label) for i, label in enumerate(labels)]


def test_the_majority_floor_is_the_share_of_the_most_frequent_label() -> None:
    assert majority_floor(choices(2, 0, 2, 1, 2)) == MajorityFloor(label=2, accuracy=0.6, examples=5)
    assert majority_floor(choices(1, 0, 0, 1)) == MajorityFloor(label=0, accuracy=0.5, examples=4)


def test_records_without_choices_have_no_majority_floor() -> None:
    assert majority_floor([CompletionRecord("a", "b")]) is None
    assert majority_floor([]) is None


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text"])
def test_random_initialisation_has_the_architecture_and_no_weight_of_the_full_model(model_type: str) -> None:
    full = tiny_language_model(model_type)
    fresh = random_initialisation(full, seed=0)
    old, new = dict(full.model.named_parameters()), dict(fresh.model.named_parameters())
    assert {name: tensor.shape for name, tensor in old.items()} == {name: tensor.shape for name, tensor in new.items()}
    matrices = [name for name in old if old[name].dim() > 1]
    assert matrices and not any(torch.equal(old[name], new[name]) for name in matrices)
    assert not any(tensor.requires_grad for tensor in new.values()) and not fresh.model.training


def test_random_initialisation_follows_its_seed_and_leaves_the_global_random_state() -> None:
    full, state = tiny_language_model("llama"), torch.random.get_rng_state()
    first, again, other = (random_initialisation(full, seed).model.get_input_embeddings().weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_random_initialisation_has_the_full_models_type() -> None:
    full = tiny_language_model("llama")
    full.model.to(torch.bfloat16)
    assert random_initialisation(full, 0).model.dtype == torch.bfloat16


def test_a_random_model_knows_no_more_than_the_size_of_the_vocabulary() -> None:
    full = tiny_language_model("llama")
    floors = measure_floors(full, choices(0, 1, 1), seed=0, reporter=SilentReporter())
    assert floors.majority == MajorityFloor(1, 2 / 3, 3)
    assert floors.loss == pytest.approx(torch.tensor(float(full.model.config.vocab_size)).log().item(), rel=0.05)


def test_the_accuracy_to_beat_is_the_higher_floor() -> None:
    random = Metrics(loss=2.0, examples=4, accuracy=0.7)
    assert Floors(MajorityFloor(0, 0.6, 4), random).accuracy == 0.7
    assert Floors(MajorityFloor(0, 0.8, 4), random).accuracy == 0.8
    assert Floors(None, Metrics(loss=2.0, examples=4)).accuracy is None


def yardstick(full: Metrics) -> Yardstick:
    floors = Floors(MajorityFloor(0, 0.5, 4), Metrics(loss=6.0, examples=4, accuracy=0.25))
    return Yardstick((AnswerRecord("a", ("b",)),), full, floors)


def test_recovery_is_the_share_of_the_way_from_floor_to_full() -> None:
    full = Metrics(loss=2.0, examples=4, accuracy=0.9)
    attack = Metrics(loss=3.0, examples=4, accuracy=0.6)
    recovered = yardstick(full).recovered(attack)
    assert recovered.accuracy == pytest.approx((0.6 - 0.5) / (0.9 - 0.5))
    assert recovered.loss == pytest.approx((6.0 - 3.0) / (6.0 - 2.0))
    assert yardstick(full).recovered(full) == Recovery(1.0, 1.0)


def test_an_f1_is_recovered_from_that_of_random_initialisation() -> None:
    random, full, attack = [
        Metrics(loss=loss, examples=4, accuracy=0.0, f1=share) for loss, share in ((6.0, 0.1), (2.0, 0.5), (3.0, 0.2))
    ]
    answers = Yardstick((AnswerRecord("a", ("b",)),), full, Floors(None, random))
    recovered = answers.recovered(attack)
    assert recovered.f1 == pytest.approx((0.2 - 0.1) / (0.5 - 0.1)) and recovered.accuracy is None
    assert answers.recovered(replace(attack, f1=None)).f1 is None
    assert replace(answers, full=random).recovered(attack).f1 is None


def test_where_the_full_model_is_no_better_than_a_floor_there_is_nothing_to_recover() -> None:
    attack = Metrics(loss=3.0, examples=4, accuracy=0.6)
    assert yardstick(Metrics(loss=6.0, examples=4, accuracy=0.5)).recovered(attack) == Recovery(None, None)
    full = Metrics(loss=2.0, examples=4, perplexity=7.4)
    assert yardstick(full).recovered(Metrics(loss=float("nan"), examples=4)) == Recovery(None, None)


def test_where_the_right_answer_always_stands_at_one_place_there_is_no_majority_floor() -> None:
    assert majority_floor(choices(3, 3, 3)) is None
