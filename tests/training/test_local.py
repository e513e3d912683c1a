import dataclasses
import gc
import weakref

import pytest
import torch

from scaleot_core.adapters.adapter import attach_adapter
from scaleot_core.adapters.spec import AdapterKind, AdapterSpec
from scaleot_core.errors import DataError
from scaleot_core.progress import SilentReporter
from scaleot_core.training.data import EncodedExample, collate
from scaleot_core.training.local import LocalTraining, TrainingResult, target_loss, train_adapter
from tests.support.tiny_models import tiny_language_model

SPEC = AdapterSpec(AdapterKind.LORA, (1, 4), rank=3, seed=5)
SETTINGS = LocalTraining(steps=6, batch_size=4, learning_rate=1e-2)


def examples(count: int = 10, seed: int = 0) -> list[EncodedExample]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 12, (count,), generator=generator).tolist()
    return [EncodedExample(tuple(torch.randint(3, 300, (n,), generator=generator).tolist()), 2) for n in lengths]


def train(
    settings: LocalTraining = SETTINGS, seed: int = 0, kind: AdapterKind = AdapterKind.LORA
) -> tuple[dict[str, torch.Tensor], TrainingResult]:
    full = tiny_language_model("llama")
    attached = attach_adapter(full.model, full.layout, dataclasses.replace(SPEC, kind=kind))
    result = train_adapter(attached, examples(), settings, pad_token_id=0, seed=seed, reporter=SilentReporter())
    return attached.state(), result


@pytest.mark.parametrize("kind", list(AdapterKind))
def test_the_loss_falls(kind: AdapterKind) -> None:
    _, result = train(dataclasses.replace(SETTINGS, steps=40), kind=kind)
    assert sum(result.losses[-5:]) < 0.96 * sum(result.losses[:5])
    assert result.num_examples == 10
    assert result.mean_loss == pytest.approx(sum(result.losses) / 40)


def test_the_same_seed_repeats_and_another_draws_other_batches() -> None:
    first, again, other = train(), train(), train(seed=1)
    assert first[1].losses == again[1].losses
    assert all(torch.equal(first[0][name], again[0][name]) for name in first[0])
    assert first[1].losses != other[1].losses


@pytest.mark.parametrize("kind", list(AdapterKind))
def test_the_memory_of_a_client_is_free_for_the_next_one_at_once(kind: AdapterKind) -> None:
    full = tiny_language_model("llama")
    attached = attach_adapter(full.model, full.layout, dataclasses.replace(SPEC, kind=kind))
    gc.disable()  # a cycle would keep the tensors until some later collection
    try:
        train_adapter(attached, examples(), SETTINGS, pad_token_id=0, seed=0, reporter=SilentReporter())
        tuned = [weakref.ref(tensor) for one in attached.trainable().values() for tensor in (one, one.grad)]
        attached.detach()
        del attached
        assert [ref for ref in tuned if ref() is not None] == []
    finally:
        gc.enable()


def test_one_sgd_step_on_a_full_batch_is_the_textbooks() -> None:
    full = tiny_language_model("llama")
    attached = attach_adapter(full.model, full.layout, SPEC)
    before = attached.state()
    target_loss(attached.model, collate(examples(), 0, torch.device("cpu"))).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in attached.trainable().items()}
    stepped, _ = train(LocalTraining(steps=1, batch_size=10, learning_rate=0.5, optimizer="sgd"))
    for name, tensor in stepped.items():
        torch.testing.assert_close(tensor, before[name] - 0.5 * gradients[name])


def test_every_epoch_sees_every_example_once() -> None:
    from scaleot_core.training.local import _batches

    mine = examples(70)
    batches = _batches(mine, 4, torch.Generator().manual_seed(0))
    for _ in range(3):
        epoch = [example for _ in range(18) for example in next(batches)]
        assert sorted(example.token_ids for example in epoch) == sorted(example.token_ids for example in mine)


def test_batches_hold_examples_of_like_length() -> None:
    from scaleot_core.training.local import _batches

    mine = examples(64)
    batches = _batches(mine, 8, torch.Generator().manual_seed(0))
    padded = sum(8 * max(len(example.token_ids) for example in next(batches)) for _ in range(8))
    assert padded < 1.15 * sum(len(example.token_ids) for example in mine)


def test_no_example_is_refused() -> None:
    full = tiny_language_model("llama")
    attached = attach_adapter(full.model, full.layout, SPEC)
    with pytest.raises(DataError, match="no example"):
        train_adapter(attached, [], SETTINGS, pad_token_id=0, seed=0, reporter=SilentReporter())
