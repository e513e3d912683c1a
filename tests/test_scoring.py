from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from scaleot_core.compression.harmonizer import DroppedLayer, Harmonizer
from scaleot_core.models.layout import layout_for
from scaleot_core.progress import SilentReporter
from scaleot_core.scoring import Score, score_examples
from scaleot_core.training.data import EncodedExample
from tests.support.tiny_models import FAMILY_CONFIGS, tiny_model


def plain_scores(model: PreTrainedModel, examples: Sequence[EncodedExample]) -> list[Score]:
    """One reading for each example: nothing shared, nothing padded, all logits."""
    scores = []
    for example in examples:
        with torch.no_grad():
            log_probabilities = model(torch.tensor([example.token_ids])).logits[0].double().log_softmax(dim=-1)
        targets = range(example.target_start, len(example.token_ids))
        total = sum(log_probabilities[place - 1, example.token_ids[place]].item() for place in targets)
        scores.append(Score(total, len(targets)))
    return scores


def score(model: PreTrainedModel, examples: Sequence[EncodedExample], batch_tokens: int = 256) -> tuple[Score, ...]:
    return score_examples(model, examples, batch_tokens=batch_tokens, reporter=SilentReporter())


def agree(first: Sequence[Score], second: Sequence[Score]) -> bool:
    return [each.num_tokens for each in first] == [each.num_tokens for each in second] and all(
        abs(a.log_probability - b.log_probability) < 1e-4 for a, b in zip(first, second, strict=True)
    )


def mixed_examples() -> list[EncodedExample]:
    """Of many lengths; some share everything but their last token, some only a context, two are the same."""
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 320, (count,), generator=draw).tolist())

    examples = [EncodedExample(tokens(length), start) for length, start in ((2, 1), (40, 39), (17, 3), (9, 1), (23, 5))]
    for length, start in ((12, 12), (30, 28)):
        prefix = tokens(length)
        examples += [EncodedExample((*prefix, last), start) for last in (7, 8, 9)]
        examples += [EncodedExample((*prefix, last), start - 1) for last in (7, 8)]
        examples += [EncodedExample((*prefix, *tokens(3)), start) for _ in range(2)]
    return [*examples, examples[2]]


def questions() -> list[list[EncodedExample]]:
    """Contexts of 12 to 20 tokens, more than a tiny sliding window has, each with choices of 1 to 6 tokens."""
    draw = torch.Generator().manual_seed(1)
    asked = []
    for context_length, choice_lengths in ((12, (3, 1, 6, 3)), (20, (2, 5)), (15, (4,)), (17, (2, 2, 1))):
        tokens = torch.randint(3, 320, (context_length + sum(choice_lengths),), generator=draw)
        context, *choices = (part.tolist() for part in tokens.split((context_length, *choice_lengths)))
        asked.append([EncodedExample((*context, *choice), context_length) for choice in choices])
    return asked


def emulator(model_type: str) -> PreTrainedModel:
    """A tiny model of five layers: the first and the fourth are harmonizers, the second is left out."""
    model = tiny_model(model_type, layers=5)
    layout = layout_for(model.config)
    returns_tuple = layout.family.returns_tuple
    for index in (0, 3):
        harmonizer = Harmonizer(16, 4, layer_index=index, returns_tuple=returns_tuple)
        torch.nn.init.normal_(harmonizer.up.weight, generator=torch.Generator().manual_seed(index))
        layout.replace_layer(model, index, harmonizer)
    layout.replace_layer(model, 1, DroppedLayer(layer_index=1, returns_tuple=returns_tuple))
    return model.eval().requires_grad_(False)


def read_lengths(
    model: PreTrainedModel, examples: Sequence[EncodedExample], batch_tokens: int
) -> list[tuple[int, int]]:
    """The shape of every batch that the model reads."""
    shapes: list[tuple[int, int]] = []

    def note_shape(module: nn.Module, args: Any, kwargs: Any) -> None:
        shapes.append(tuple(kwargs["input_ids"].shape))

    handle = model.register_forward_pre_hook(note_shape, with_kwargs=True)
    score(model, examples, batch_tokens)
    handle.remove()
    return shapes


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_shared_and_padded_batches_give_the_scores_of_single_readings(model_type: str) -> None:
    model = tiny_model(model_type, layers=3)
    examples = mixed_examples()
    expected = plain_scores(model, examples)
    for batch_tokens in (1, 64, 10_000):
        assert agree(score(model, examples, batch_tokens), expected)


@pytest.mark.parametrize("make_model", [lambda kind: tiny_model(kind, layers=4), emulator], ids=["full", "emulator"])
@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_contexts_read_once_give_the_scores_of_single_readings(
    model_type: str, make_model: Callable[[str], PreTrainedModel]
) -> None:
    model = make_model(model_type)
    asked = questions()
    for examples in (asked[0], list(chain.from_iterable(asked))):
        expected = plain_scores(model, examples)
        for batch_tokens in (48, 10_000):
            assert agree(score(model, examples, batch_tokens), expected)


def test_choices_of_a_question_cost_one_reading_of_their_context() -> None:
    context = tuple(range(10, 30))
    choices = ((3, 4, 5), (6,), (7, 8, 9, 3))
    examples = [EncodedExample((*context, *choice), len(context)) for choice in choices]
    shapes = read_lengths(tiny_model("llama", layers=2), examples, 1000)
    assert shapes == [(1, len(context) - 1), (len(choices), 4)]  # the context's last token goes with the choices


def test_contexts_are_read_as_far_as_the_shortest_goes() -> None:
    examples = list(chain.from_iterable(questions()))
    assert read_lengths(tiny_model("llama", layers=2), examples, 1000) == [(4, 12 - 1), (10, 20 + 5 - 12)]


def test_a_context_that_nothing_shares_is_read_together_with_its_target() -> None:
    examples = [choices[0] for choices in questions()]
    assert read_lengths(tiny_model("llama", layers=2), examples, 1000) == [(4, 20 + 2 - 1)]


def test_answers_of_one_token_cost_one_reading_of_their_context() -> None:
    context = tuple(range(10, 30))
    examples = [EncodedExample((*context, answer), len(context)) for answer in (3, 4, 5)]
    assert read_lengths(tiny_model("llama", layers=2), examples, 1000) == [(1, len(context))]


def test_a_batch_holds_no_more_tokens_than_it_may() -> None:
    examples = mixed_examples()
    shapes = read_lengths(tiny_model("llama", layers=2), examples, 64)
    assert all(rows * length <= 64 for rows, length in shapes)
    assert read_lengths(tiny_model("llama", layers=2), examples[1:2], 8) == [(1, 39)]


def test_the_longest_rows_are_read_first() -> None:
    examples = [EncodedExample(tuple(range(3, 3 + length)), 1) for length in (9, 30, 17, 12, 25)]
    shapes = read_lengths(tiny_model("llama", layers=2), examples, 50)
    assert shapes == [(1, 29), (2, 24), (2, 11)]


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_logits_are_made_for_target_tokens_only(model_type: str) -> None:
    model = tiny_model(model_type)
    rows: list[int] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, args: rows.append(args[0].numel() // args[0].shape[-1])
    )
    examples = [EncodedExample(tuple(range(3, 33)), 28), EncodedExample(tuple(range(40, 50)), 9)]
    score(model, examples)
    handle.remove()
    assert sum(rows) == 3


def test_scoring_leaves_no_gradients() -> None:
    model = tiny_model("llama", layers=2).requires_grad_(True)
    score(model, mixed_examples())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_examples_have_no_scores() -> None:
    assert score(tiny_model("llama", layers=2), []) == ()
