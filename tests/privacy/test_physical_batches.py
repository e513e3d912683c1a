import pytest
import torch

from scaleot_core.privacy.physical_batches import (
    forward_rows,
    gradient_rows,
    physical_batches,
    rows_in,
    rung_above,
)
from scaleot_core.training.data import EncodedExample
from tests.support.private_tasks import random_examples

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_the_ladder_rises_by_at_most_half_and_never_falls_short() -> None:
    rungs = [rung_above(count) for count in range(1, 2000)]
    assert sorted(set(rungs))[:9] == [8, 16, 24, 32, 48, 64, 96, 128, 192]
    assert all(rung >= count for count, rung in enumerate(rungs, start=1))
    assert all(rung < 1.5 * count + 8 for count, rung in enumerate(rungs, start=1))


def test_each_example_stands_once_in_a_batch_with_its_own_tokens_and_targets() -> None:
    examples = random_examples(23)
    seen = []
    for batch in physical_batches(examples, rows=4, pad_token_id=0, max_positions=None, device=CPU):
        assert batch.input_ids.shape[0] == batch.positions.shape[0] == batch.labels.shape[0] == 4
        for row in range(batch.num_examples):
            has_loss = batch.labels[row] != -100
            places = (batch.positions[row][has_loss] + 1).tolist()
            tokens = batch.input_ids[row].tolist()[: places[-1] + 1]
            assert [tokens[place] for place in places] == batch.labels[row][has_loss].tolist()
            assert places == list(range(places[0], places[-1] + 1))
            seen.append(EncodedExample(tuple(tokens), places[0]))
        assert bool((batch.labels[batch.num_examples :] == -100).all())
    assert sorted(seen, key=repr) == sorted(examples, key=repr)


def test_an_examples_shape_is_the_same_in_all_company() -> None:
    example = random_examples(1, seed=3)[0]
    shapes = set()
    for seed in range(5):
        company = random_examples(9, seed=seed, lengths=(4, 90))
        for batch in physical_batches([*company, example], rows=4, pad_token_id=0, max_positions=None, device=CPU):
            rows = batch.input_ids[: batch.num_examples, : len(example.token_ids)].tolist()
            if list(example.token_ids) in rows:
                shapes.add((batch.input_ids.shape, batch.positions.shape))
    assert len(shapes) == 1


@pytest.mark.parametrize("max_positions", [20, None])
def test_no_row_is_padded_beyond_the_models_positions(max_positions: int | None) -> None:
    example = EncodedExample(tuple(range(3, 21)), 1)
    (batch,) = physical_batches([example], rows=1, pad_token_id=0, max_positions=max_positions, device=CPU)
    assert batch.input_ids.shape == (1, max_positions or 24)


def test_no_example_gives_no_batch() -> None:
    assert list(physical_batches([], rows=4, pad_token_id=0, max_positions=None, device=CPU)) == []


@pytest.mark.parametrize(
    ("expected", "on_cpu", "on_gpu"), [(1.0, 4, 2), (16.0, 4, 20), (32.0, 8, 40), (64.0, 16, 80), (1000.0, 16, 80)]
)
def test_a_cpu_cuts_a_sample_in_small_batches_and_a_gpu_takes_most_samples_in_one(
    expected: float, on_cpu: int, on_gpu: int
) -> None:
    assert (gradient_rows(expected, CPU), gradient_rows(expected, GPU)) == (on_cpu, on_gpu)


@pytest.mark.parametrize(("expected", "on_gpu"), [(16.0, 20), (64.0, 80), (128.0, 160), (1000.0, 160)])
def test_forward_passes_have_twice_as_many_rows_at_most_on_a_gpu(expected: float, on_gpu: int) -> None:
    assert (forward_rows(expected, CPU), forward_rows(expected, GPU)) == (8, on_gpu)


@pytest.mark.parametrize(
    ("tokens", "on_cpu", "on_gpu"),
    [(8, 16, 16), (32, 16, 16), (64, 8, 16), (128, 4, 16), (512, 4, 16), (1024, 4, 8), (16384, 4, 1)],
)
def test_long_batches_have_fewer_rows_and_on_a_gpu_no_more_than_fill_it(tokens: int, on_cpu: int, on_gpu: int) -> None:
    assert (rows_in(tokens, 16, CPU), rows_in(tokens, 16, GPU)) == (on_cpu, on_gpu)
    assert rows_in(tokens, 1, CPU) == 1
    example = random_examples(1, lengths=(tokens, tokens + 1))
    (batch,) = physical_batches(example, rows=16, pad_token_id=0, max_positions=None, device=CPU)
    assert batch.input_ids.shape == (on_cpu, tokens)


@pytest.mark.gpu
def test_on_a_gpu_short_examples_of_all_lengths_stand_in_one_batch() -> None:
    batches = list(physical_batches(random_examples(23), rows=24, pad_token_id=0, max_positions=None, device=GPU))
    assert [tuple(batch.input_ids.shape) for batch in batches] == [(24, 64)] * len({b.positions.shape for b in batches})
