import math

import pytest
import torch
from scipy import stats

from scaleot_core.errors import InputError
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.release import Release
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.privacy.update_noise import UpdateGaussian
from scaleot_core.progress import SilentReporter
from scaleot_core.training.data import EncodedExample
from scaleot_core.training.local import LocalTraining, train_adapter
from tests.support.private_tasks import attached_adapter, flat, private_task, random_examples

TRAINING = LocalTraining(steps=3, batch_size=4, learning_rate=0.01)


def mechanism(noise_multiplier: float = 1.0, max_update_norm: float = 0.5) -> UpdateGaussian:
    return UpdateGaussian(TRAINING, 0, max_update_norm, noise_multiplier)


def moved(settings: UpdateGaussian, examples: list[EncodedExample]) -> tuple[torch.Tensor, Release]:
    attached = attached_adapter()
    before = attached.state()
    release = settings.release(
        private_task(attached, examples), secret=SecretSource(), charge=lambda event: None, reporter=SilentReporter()
    )
    assert all(torch.equal(tensor, release.tensors[name]) for name, tensor in attached.state().items())
    return flat(release.tensors) - flat(before), release


@pytest.mark.parametrize("examples", [[], random_examples(5)])
def test_the_noise_is_normal_with_the_promised_deviation(examples: list[EncodedExample]) -> None:
    change, _ = moved(mechanism(noise_multiplier=100.0), examples)
    assert stats.kstest((change / (100.0 * 0.5)).numpy(), "norm").pvalue > 1e-6


def test_a_round_moves_the_adapter_by_the_clipped_update_of_ordinary_training() -> None:
    attached = attached_adapter()
    before = attached.state()
    train_adapter(attached, random_examples(5), TRAINING, pad_token_id=0, seed=0, reporter=SilentReporter())
    update = flat(attached.state()) - flat(before)
    assert float(update.norm()) > 0.1
    for bound in (0.1, 1.0 + float(update.norm())):
        change, _ = moved(mechanism(0.1, max_update_norm=bound), random_examples(5))
        clipped = update * min(1.0, bound / float(update.norm()))
        assert stats.kstest(((change - clipped) / (0.1 * bound)).numpy(), "norm").pvalue > 1e-6
        assert float(clipped.norm()) > 0.3 * bound


def test_public_seeds_do_not_repeat_the_noise() -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        found.append(moved(mechanism(100.0), random_examples(3))[0])
    assert abs(float(torch.corrcoef(torch.stack(found))[0, 1])) < 6 / len(found[0]) ** 0.5


def test_training_that_diverged_is_bounded_like_any_other() -> None:
    attached = attached_adapter()
    with torch.no_grad():
        attached.model.get_input_embeddings().weight.fill_(math.nan)
    noisy = flat(mechanism(0.1).step(private_task(attached, random_examples(3)), 0, SecretSource()))
    noise = noisy - 0.5 / len(noisy) ** 0.5
    assert stats.kstest((noise / (0.1 * 0.5)).numpy(), "norm").pvalue > 1e-6


def test_a_round_is_one_release_without_sampling() -> None:
    _, release = moved(mechanism(2.0), random_examples(3))
    assert release.event == PrivacyEvent("gaussian", {"noise_multiplier": 2.0}, sample_rate=1.0, count=1)
    assert mechanism(2.0).event() == release.event


@pytest.mark.parametrize(("noise", "norm"), [(0.0, 1.0), (1.0, 0.0), (math.nan, 1.0), (1.0, math.inf)])
def test_settings_out_of_range_are_refused(noise: float, norm: float) -> None:
    with pytest.raises(InputError):
        mechanism(noise, norm)
