import pytest
import torch

from scaleot_core.privacy.losses import example_losses
from scaleot_core.training.data import EncodedExample
from tests.support.privacy_reference import mean_target_loss
from tests.support.private_tasks import attached_adapter, private_task, random_examples
from tests.support.tiny_models import FAMILY_CONFIGS


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_a_loss_is_the_mean_over_the_examples_own_targets(model_type: str) -> None:
    attached = attached_adapter(model_type)
    for example in random_examples(4):
        (batch,) = private_task(attached, []).physical_batches([example])
        losses = example_losses(attached.model, batch)
        torch.testing.assert_close(losses[0], mean_target_loss(attached.model, example), rtol=1e-4, atol=1e-5)
        assert losses.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neither_place_nor_company_changes_a_bit_of_a_loss(dtype: torch.dtype) -> None:
    attached = attached_adapter(dtype=dtype)
    example = EncodedExample(tuple(range(10, 30)), 15)
    losses = set()
    with torch.inference_mode():
        for seed in range(6):
            company = random_examples(6, seed=seed, lengths=(4, 60))
            company.insert(seed, example)
            for batch in private_task(attached, []).physical_batches(company):
                rows = batch.input_ids[: batch.num_examples, :20].tolist()
                if list(example.token_ids) in rows:
                    losses.add(float(example_losses(attached.model, batch)[rows.index(list(example.token_ids))]))
    assert len(losses) == 1


def test_a_long_example_does_not_shrink_the_loss_of_a_short_one() -> None:
    attached = attached_adapter()
    short, long = random_examples(1, lengths=(6, 7))[0], random_examples(1, seed=1, lengths=(100, 101))[0]
    alone = mean_target_loss(attached.model, short)
    found = [
        example_losses(attached.model, batch)[0] for batch in private_task(attached, []).physical_batches([short, long])
    ]
    torch.testing.assert_close(found[0], alone, rtol=1e-4, atol=1e-5)


def test_an_empty_row_has_no_loss() -> None:
    attached = attached_adapter()
    (batch,) = private_task(attached, []).physical_batches(random_examples(1))
    assert example_losses(attached.model, batch)[1:].tolist() == [0.0, 0.0, 0.0]
