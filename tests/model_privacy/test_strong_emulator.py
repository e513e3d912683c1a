import pytest
import torch

from scaleot_core.compression.plan import LayerRole
from scaleot_core.errors import DataError
from scaleot_core.model_privacy.strong_emulator import PrivateTuning, tune_whole_emulator
from scaleot_core.model_privacy.unfrozen import unfrozen_copy
from scaleot_core.training.data import encode_for_training
from scaleot_core.training.local import LocalTraining
from tests.model_privacy.taught import CHOICES, SILENT, Taught

TRAINING = LocalTraining(steps=12, batch_size=8, learning_rate=2e-3)
PLAN = (LayerRole.REPLACED, LayerRole.KEPT, LayerRole.REPLACED, LayerRole.ADAPTER)


def private(taught: Taught, training: LocalTraining = TRAINING) -> PrivateTuning:
    return PrivateTuning(encode_for_training(CHOICES, taught.full.tokenizer, max_tokens=48), training)


def test_a_copy_is_free_and_float32_and_the_emulator_stays_as_it_is(taught: Taught) -> None:
    emulator = taught.emulator(*PLAN)
    emulator.model.to(torch.bfloat16)
    copied = unfrozen_copy(emulator)
    pairs = zip(emulator.model.named_parameters(), copied.model.named_parameters(), strict=True)
    for (name, own), (copied_name, free) in pairs:
        assert name == copied_name and own.data_ptr() != free.data_ptr()
        assert (own.dtype, own.requires_grad) == (torch.bfloat16, False)
        assert (free.dtype, free.requires_grad) == (torch.float32, True)
        assert torch.equal(own.float(), free)


def test_every_weight_of_the_emulator_is_tuned_harmonizers_too_and_the_original_is_not(taught: Taught) -> None:
    emulator = taught.emulator(*PLAN)
    before = {name: tensor.clone() for name, tensor in emulator.model.named_parameters()}
    attack = tune_whole_emulator(emulator, private(taught), CHOICES, seed=0, reporter=SILENT)
    assert all(torch.equal(tensor, before[name]) for name, tensor in emulator.model.named_parameters())
    assert len(attack.losses) == 12
    measured = taught.measure(emulator, CHOICES)
    assert attack.metrics.loss < 0.7 * measured.loss
    assert sum(attack.losses[-3:]) < 0.7 * sum(attack.losses[:3])


def test_the_same_seed_repeats_the_attack_and_another_draws_other_batches(taught: Taught) -> None:
    emulator = taught.emulator(*PLAN)
    runs = [tune_whole_emulator(emulator, private(taught), CHOICES, seed=s, reporter=SILENT) for s in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0].losses != runs[2].losses


def test_no_example_is_refused(taught: Taught) -> None:
    with pytest.raises(DataError, match="no example"):
        tune_whole_emulator(taught.emulator(*PLAN), PrivateTuning((), TRAINING), CHOICES, seed=0, reporter=SILENT)
