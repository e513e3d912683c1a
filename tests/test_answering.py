from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from scaleot_core.answering import MAX_ANSWER_TOKENS, exact_match, f1, generate_answers
from scaleot_core.compression.harmonizer import DroppedLayer, Harmonizer
from scaleot_core.models.layout import layout_for
from scaleot_core.progress import SilentReporter
from tests.support.tiny_models import FAMILY_CONFIGS, tiny_model
from tests.support.tiny_tokenizer import tiny_tokenizer

CONTEXTS = ["the film is", "the story is", "a", "the bad film", "true or"]


def plain_answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, token_ids: list[int]) -> str:
    """One context, read anew for every token: no cache and no batches."""
    generated: list[int] = []
    while len(generated) < MAX_ANSWER_TOKENS:
        with torch.no_grad():
            generated.append(int(model(torch.tensor([token_ids + generated])).logits[0, -1].argmax()))
        if generated[-1] == tokenizer.eos_token_id or "\n" in tokenizer.decode(generated):
            break
    text: str = tokenizer.decode(generated, skip_special_tokens=True)
    return text.split("\n", maxsplit=1)[0].strip()


def plain_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return [plain_answer(model, tokenizer, tokenizer(context)["input_ids"]) for context in CONTEXTS]


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    contexts: Sequence[str] = CONTEXTS,
    batch_tokens: int = 4096,
) -> list[str]:
    generated = generate_answers(
        model, tokenizer, contexts, max_tokens=128, batch_tokens=batch_tokens, reporter=SilentReporter()
    )
    return list(generated)


def tokenizer_that_ends(model: PreTrainedModel) -> PreTrainedTokenizerFast:
    """Its end-of-text token is one that the model generates soon, so that answers end at different lengths."""
    token_ids = tiny_tokenizer()(CONTEXTS[0])["input_ids"]
    for _ in range(3):
        token_ids.append(int(model(torch.tensor([token_ids])).logits[0, -1].argmax()))
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(token_ids[-1])
    return tokenizer


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_batched_generation_with_a_cache_equals_reading_everything_anew(model_type: str) -> None:
    model = tiny_model(model_type, layers=3)
    tokenizer = tokenizer_that_ends(model)
    expected = plain_answers(model, tokenizer)
    assert len(set(map(len, expected))) > 1
    assert answers(model, tokenizer) == answers(model, tokenizer, batch_tokens=1) == expected


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mistral", "bloom"])
def test_an_emulator_without_its_first_layers_generates_as_if_it_read_everything_anew(model_type: str) -> None:
    model = tiny_model(model_type, layers=4)
    layout = layout_for(model.config)
    returns_tuple = layout.family.returns_tuple
    layout.replace_layer(model, 0, Harmonizer(layout.hidden_size, 4, layer_index=0, returns_tuple=returns_tuple))
    layout.replace_layer(model, 1, DroppedLayer(layer_index=1, returns_tuple=returns_tuple))
    tokenizer = tokenizer_that_ends(model)
    assert answers(model, tokenizer) == plain_answers(model, tokenizer)


def test_an_answer_ends_with_its_line() -> None:
    model = tiny_model("llama", tied=False, layers=3)
    tokenizer = tiny_tokenizer()
    model.get_output_embeddings().weight.data[tokenizer("\n")["input_ids"][0]] *= 3
    expected = plain_answers(model, tokenizer)
    readings: list[int] = []
    model.register_forward_pre_hook(lambda _, args: readings.append(1))
    assert answers(model, tokenizer, batch_tokens=1) == expected
    assert min(map(len, expected)) < max(map(len, expected))
    assert len(readings) < len(CONTEXTS) * MAX_ANSWER_TOKENS


def test_too_long_a_context_loses_its_beginning_and_leaves_room_for_the_answer() -> None:
    model, tokenizer = tiny_model("gpt2", layers=3), tiny_tokenizer()
    context = "the film is good and the story is true" * 40
    kept = tokenizer(context)["input_ids"][-128 + MAX_ANSWER_TOKENS :]
    assert answers(model, tokenizer, [context]) == [plain_answer(model, tokenizer, kept)]


@pytest.mark.parametrize(
    ("prediction", "accepted", "match", "score"),
    [
        ("The Denver Broncos!", ["denver  broncos"], 1.0, 1.0),
        ("Broncos", ["Denver Broncos", "the broncos"], 1.0, 1.0),
        ("in Santa Clara, California", ["Santa Clara", "Levi's Stadium"], 0.0, 2 / 3),
        ("gold gold", ["gold"], 0.0, 2 / 3),
        ("no", ["yes"], 0.0, 0.0),
        ("", ["yes"], 0.0, 0.0),
        ("the", ["a"], 1.0, 1.0),
    ],
)
def test_answers_are_compared_as_squad_does(prediction: str, accepted: list[str], match: float, score: float) -> None:
    assert exact_match(prediction, accepted) == match
    assert f1(prediction, accepted) == pytest.approx(score)
